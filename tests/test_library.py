"""The library without the command line: load, adapt, train, merge, save, load again."""

import jax
import numpy as np
import pytest

import lora_jax
from lora_jax.data.batches import Batch

pytestmark = pytest.mark.smoke


def test_the_names_are_there():
    assert {"load_base", "graft", "merge", "stack", "packed_step", "save_adapter"} < set(lora_jax.__all__)
    for name in lora_jax.__all__:
        assert getattr(lora_jax, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = lora_jax.nothing_such


def test_from_a_base_to_an_adapter(tiny_model, tmp_path):
    base = lora_jax.load_base(str(tiny_model), "bert", labels=3)
    frozen = {path: np.asarray(value).copy() for path, value in lora_jax.parameters(base.model).items()}

    # Two runs of different rank, learning rate and seed: one program.
    runs = [
        lora_jax.compose_run("rank=2", "targets=qv", "lr=1e-2", "steps=20"),
        lora_jax.compose_run("rank=5", "targets=all", "lr=3e-2", "steps=20", "seed=1"),
    ]
    method, program = lora_jax.method_of(runs[0].method), lora_jax.program_of(runs[0])
    inits = [method.init(base.model, run) for run in runs]
    state, constants, hyper = lora_jax.stack(program, inits, [lora_jax.hyper_of(run, 20) for run in runs])

    texts = ["where is my card?", "the exchange rate is wrong", "close my account"]
    ids = [base.tokenizer.encode(text).ids for text in texts]
    tokens = np.zeros((3, 16), np.int32)
    for row, own in zip(tokens, ids, strict=True):
        row[: len(own)] = own
    labels = np.arange(3, dtype=np.int32)
    batch = Batch(*(np.stack([part] * len(runs)) for part in (tokens, tokens > 0, labels)))
    step = lora_jax.packed_step(program)
    losses = []
    for _ in range(20):
        state, metrics = step(base.model, state, constants, hyper, batch)
        losses.append(np.asarray(metrics.loss))
    assert (losses[-1] < 0.9 * losses[0]).all()
    assert all((np.asarray(value) == frozen[path]).all() for path, value in lora_jax.parameters(base.model).items())

    for i, (run, init) in enumerate(zip(runs, inits, strict=True)):
        params = lora_jax.unstack_run(state.params, i, init.params)
        assert jax.tree.map(np.shape, jax.tree.leaves(params)) == jax.tree.map(
            np.shape, jax.tree.leaves(init.params)
        )  # its own rank again
        folder = tmp_path / f"rank={run.rank}"
        about = {"base_source": base.source, "base_fingerprint": base.fingerprint, "config": run.model_dump()}
        lora_jax.save_adapter(folder, params, init.constants, **about)
        adapter = lora_jax.load_adapter(folder, base_fingerprint=base.fingerprint)
        delta = method.materialise(adapter.params, adapter.constants)
        grafted = jax.jit(lambda delta: lora_jax.graft(base.model, delta)(tokens, tokens > 0))(delta)
        merged = jax.jit(lambda delta: lora_jax.merge(base.model, delta)(tokens, tokens > 0))(delta)
        batch = Batch(tokens, tokens > 0, labels)
        packed = lora_jax.packed_outputs(program)(base.model, state.params, constants, batch)
        np.testing.assert_allclose(grafted, merged, atol=1e-5)
        np.testing.assert_allclose(grafted, packed[i], atol=1e-5)
        assert (np.asarray(grafted).argmax(-1) == labels).mean() > 0.5


def test_an_adapter_of_another_base_is_refused(tiny_model, tmp_path):
    base = lora_jax.load_base(str(tiny_model), "bert", labels=3)
    other = lora_jax.load_base(str(tiny_model), "bert", labels=4)
    assert base.fingerprint != other.fingerprint
    run = lora_jax.compose_run("rank=2")
    init = lora_jax.method_of(run.method).init(base.model, run)
    about = {"base_source": base.source, "base_fingerprint": base.fingerprint, "config": {}}
    lora_jax.save_adapter(tmp_path / "adapter", init.params, init.constants, **about)
    with pytest.raises(lora_jax.UserError, match=r"was trained on .*load it with the base that it was trained on"):
        lora_jax.load_adapter(tmp_path / "adapter", base_fingerprint=other.fingerprint, base_source=other.source)


def test_points_without_hydra(tiny_model, tmp_path):
    """A sweep from Python: the same files as from the command line."""
    small = [f"model.source={tiny_model}", "wandb.mode=disabled", "batch=8", "eval_batch=256", "task.buckets=[16]"]
    points = [
        lora_jax.Point(
            f"rank={rank}", tmp_path / f"rank={rank}", lora_jax.compose_run(*small, "steps=2", f"rank={rank}")
        )
        for rank in (2, 4)
    ]
    summaries = lora_jax.run_points(points, home=tmp_path, group="from Python")
    assert [(summary.name, summary.status) for summary in summaries] == [
        ("rank=2", "finished"),
        ("rank=4", "finished"),
    ]
    assert lora_jax.build_report(tmp_path).exists()
    with pytest.raises(lora_jax.UserError, match="already has a run"):
        lora_jax.run_points(points, home=tmp_path, group="from Python")
