"""What a comparison rests on: both sides see the same batches and start as the same function."""

import json

import jax
import numpy as np
import pytest

from lora_jax.bench import inputs, record
from lora_jax.bench.clock import Clock
from lora_jax.bench.sweep_vs_peft import peft_job, settings
from lora_jax.config.point import Point
from lora_jax.data.batches import Batch
from lora_jax.train.loop import make_pack
from lora_jax.train.pack import packed_outputs, packed_step
from lora_jax.train.setup import setup_of


def test_peft_sees_the_same_batches_and_starts_and_trains_as_we_do(tmp_path):
    pytest.importorskip("peft")
    from lora_jax.bench import peft

    steps = 3
    runs = settings([2, 4], steps, 3e-3, 4, ["optim.warmup=0"])
    job = peft_job(runs, tmp_path / "inputs.npz")
    given = inputs.load(tmp_path / "inputs.npz")
    setup = setup_of(runs[0])
    pack = make_pack(setup, [Point(f"rank={run.rank}", tmp_path, run) for run in runs])
    models = [
        peft.classifier(job["model"], start, alpha=alpha)
        for start, alpha in zip(given.starts, job["alphas"], strict=True)
    ]

    tokens, mask, labels = given.train[0]
    outputs_of = packed_outputs(pack.program)
    ours = outputs_of(setup.base.model, pack.state.params, pack.constants, Batch(tokens, mask, labels))
    for run, model in enumerate(models):
        theirs = model(peft.as_tensor(tokens), peft.as_tensor(mask)).detach().numpy()
        np.testing.assert_allclose(ours[run], theirs, atol=2e-5)

    own = {key: job[key] for key in ("lr", "warmup", "steps", "clip")}
    theirs = [peft.train(model, given.train, **own, mode="eager")[0] for model in models]
    state, losses = pack.state, []
    for i in range(steps):
        batch = pack.batches[i]
        np.testing.assert_array_equal(batch.tokens, np.stack([given.train[i][0]] * len(runs)))
        state, metrics = packed_step(pack.program)(setup.base.model, state, pack.constants, pack.hyper, batch)
        losses.append(jax.device_get(metrics.loss))
    np.testing.assert_allclose(np.transpose(losses), theirs, rtol=2e-3)
    # Every test example is scored once.
    assert sum(counts.sum() for counts in given.test_counts) == len(setup.tokens.encoded["test"])


def test_a_report_holds_what_is_needed_to_repeat_it(tmp_path):
    report = record.Report("some", "cpu", "Some bench", record.table(["", "seconds"], [["ours", "1.0"]]), {"ratio": 2})
    page = record.write(report, tmp_path / "new", ["python", "-m", "experiments.bench", "some", "--steps", "5"])
    written = json.loads(page.with_suffix(".json").read_text())
    assert page.name == "some-cpu.md"
    assert written["ratio"] == 2
    assert written["command"] == "python -m experiments.bench some --steps 5"
    assert {"date", "commit", "hardware", "versions"} <= set(written)
    assert "|ours|1.0|" in page.read_text() and written["command"] in page.read_text()


def test_the_clock_books_every_second_once():
    clock = Clock(0.0)
    clock.lap("imports")
    clock.lap("train")
    clock.lap("train")
    assert sum(clock.parts.values()) == pytest.approx(clock.total)
    assert list(clock.parts) == ["imports", "train"]
