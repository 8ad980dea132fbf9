"""LoRA on an embedding merges, packs, pads, counts and saves like LoRA on a linear layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import inputs_of, model_of

from lora_jax.delta import count, graft, merge
from lora_jax.errors import UserError
from lora_jax.methods.lora import Lora
from lora_jax.weights.adapters import load_adapter, save_adapter

WORD, POSITION = "backbone/embed/word/adapter", "backbone/embed/position/adapter"


def drawn(base, run):
    """Returns a run's init with noise on every parameter, and the delta to graft."""
    start = Lora().init(base, run)
    rng = np.random.default_rng(run.seed)
    params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), start.params)
    return params, Lora().materialise(params, start.constants)


@pytest.mark.parametrize("targets", ["embed", "all+embed", "re:embed/position"])
def test_merging_and_resizing_change_no_output(base, configure, targets):
    tokens, mask = inputs_of("bert")
    _, delta = drawn(base, configure(rank=4, targets=targets))
    forward = jax.jit(lambda model: model(tokens, mask))
    grafted = forward(graft(base, delta))
    np.testing.assert_allclose(forward(merge(base, delta)), grafted, atol=1e-5)
    wide = {path: value if value.size is None else value.resize(7) for path, value in delta.items()}
    np.testing.assert_allclose(forward(graft(base, wide)), grafted, atol=1e-5)
    assert (
        float(jnp.abs(grafted - forward(graft(base, {p: v for p, v in delta.items() if "embed" not in p}))).max())
        > 0.01
    )


def test_lora_on_a_tied_embedding_adapts_the_lookup_alone_and_cannot_merge(configure):
    model, (tokens, mask) = model_of("qwen3"), inputs_of("qwen3")
    _, delta = drawn(model, configure(rank=4, targets="embed"))
    adapted = graft(model, delta)
    hidden = model.backbone(tokens, mask)
    np.testing.assert_array_equal(adapted.logits(hidden), model.logits(hidden))
    assert float(jnp.abs(adapted(tokens, mask) - model(tokens, mask)).max()) > 0.1
    with pytest.raises(UserError, match="backbone/embed is adapted, and its table is the output layer too"):
        merge(model, delta)
    untied, (tokens, mask) = model_of("llama"), inputs_of("llama")
    _, delta = drawn(untied, configure(rank=4, targets="embed"))
    np.testing.assert_allclose(merge(untied, delta)(tokens, mask), graft(untied, delta)(tokens, mask), atol=1e-4)


def test_an_embedding_counts_its_parameters_and_has_no_dropout(base, configure):
    start = Lora().init(base, configure(rank=4, targets="embed", method__dropout=0.5))
    head = count({path: value for path, value in start.params.items() if path.startswith("head/")})
    assert start.trainable == 4 * (101 + 32) + head
    tokens, mask = inputs_of("bert")
    _, delta = drawn(base, configure(rank=4, targets="embed", method__dropout=0.5))
    same = [graft(base, delta)(tokens, mask, dropout_rate=0.0, key=jax.random.key(seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(*same)
    with pytest.raises(UserError, match="rank=3: backbone/embed/type is 2 x 32, so its rank is at most 2"):
        Lora().validate(base, configure(rank=3, targets="re:embed/type"))


@pytest.mark.slow
def test_packed_runs_train_as_each_does_alone(base, configure, pack_of):
    wide = {"batch": 8, "steps": 20, "lr": 5e-3}
    runs = [
        configure(rank=3, targets="embed+q", seed=1, **wide),
        configure(rank=5, targets="all+re:embed/(word|position)", seed=2, **wide),
    ]
    packed = pack_of(base, runs).train(base, 5)
    assert packed.state.params[WORD].a.shape == (2, 101, 5)
    for i, run in enumerate(runs):
        alone = pack_of(base, [run]).train(base, 5)
        np.testing.assert_allclose(packed.metrics.loss[:, i], alone.metrics.loss[:, 0], rtol=1e-5)
    a, b = (np.asarray(getattr(packed.state.params[WORD], part)[0]) for part in "ab")
    assert a[:, :3].any() and not a[:, 3:].any() and b[:3].any() and not b[3:].any()
    for part in "ab":  # a target that this run does not adapt
        assert not np.asarray(getattr(packed.state.params[POSITION], part)[0]).any()


def test_a_saved_adapter_contains_the_embedding(base, configure, tmp_path):
    run = configure(rank=4, targets="embed+q")
    params, _ = drawn(base, run)
    constants = Lora().init(base, run).constants
    save_adapter(tmp_path / "adapter", params, constants, base_source="x", base_fingerprint="y", config={})
    read = load_adapter(tmp_path / "adapter", base_fingerprint="y")
    assert read.params.keys() == params.keys() and float(read.constants[WORD].scale) == 4.0
    for one, other in zip(jax.tree.leaves(read.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)
