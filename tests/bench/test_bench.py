"""The sweep bench: lora_jax and PEFT get the same batches and compute the same function at initialisation."""

import json

import jax
import numpy as np
import pytest

from lora_jax.bench import inputs, record
from lora_jax.bench.clock import Clock
from lora_jax.bench.sweep_vs_peft import peft_job, settings
from lora_jax.config.point import Point
from lora_jax.data.batches import Batch
from lora_jax.train.pack import make_pack, packed_outputs, packed_step
from lora_jax.train.setup import load_setup


def test_peft_gets_the_same_batches_and_inits_and_trains_the_same(tmp_path):
    pytest.importorskip("peft")
    from lora_jax.bench import peft

    steps = 3
    runs = settings([2, 4], steps, 3e-3, 4, ["optim.warmup=0"])
    job = peft_job(runs, tmp_path / "inputs.npz")
    data = inputs.load(tmp_path / "inputs.npz")
    setup = load_setup(runs[0])
    pack = make_pack([setup] * len(runs), [Point(f"rank={run.rank}", tmp_path, run) for run in runs])
    models = [
        peft.classifier(job["model"], init, alpha=alpha) for init, alpha in zip(data.inits, job["alphas"], strict=True)
    ]

    tokens, mask, labels = data.train[0]
    outputs_of = packed_outputs(pack.program)
    outputs = outputs_of(setup.base.model, pack.state.params, pack.constants, Batch(tokens, mask, labels))
    for run, model in enumerate(models):
        peft_outputs = model(peft.as_tensor(tokens), peft.as_tensor(mask)).detach().numpy()
        np.testing.assert_allclose(outputs[run], peft_outputs, atol=2e-5)

    optimization = {key: job[key] for key in ("lr", "warmup", "steps", "clip")}
    peft_losses = [peft.train(model, data.train, **optimization, mode="eager")[0] for model in models]
    state, losses = pack.state, []
    for i in range(steps):
        batch = pack.batches[i]
        np.testing.assert_array_equal(batch.tokens, np.stack([data.train[i][0]] * len(runs)))
        state, metrics = packed_step(pack.program)(setup.base.model, state, pack.constants, pack.hyper, batch)
        losses.append(jax.device_get(metrics.loss))
    np.testing.assert_allclose(np.transpose(losses), peft_losses, rtol=2e-3)
    # Every test example is scored once.
    assert sum(counts.sum() for counts in data.test_counts) == len(setup.data.splits["test"])


def test_a_report_has_the_command_and_the_environment(tmp_path):
    report = record.Report(
        "some", "cpu", "Some bench", record.table(["", "seconds"], [["lora_jax", "1.0"]]), {"ratio": 2}
    )
    page = record.write(report, tmp_path / "new", ["python", "-m", "experiments.bench", "some", "--steps", "5"])
    written = json.loads(page.with_suffix(".json").read_text())
    assert page.name == "some-cpu.md"
    assert written["ratio"] == 2
    assert written["command"] == "python -m experiments.bench some --steps 5"
    assert {"date", "commit", "hardware", "versions"} <= set(written)
    assert "|lora_jax|1.0|" in page.read_text() and written["command"] in page.read_text()


def test_the_parts_of_the_clock_add_up_to_its_total():
    clock = Clock(0.0)
    clock.lap("imports")
    clock.lap("train")
    clock.lap("train")
    assert sum(clock.parts.values()) == pytest.approx(clock.total)
    assert list(clock.parts) == ["imports", "train"]
