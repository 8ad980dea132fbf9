"""Deltas: graft and merge on a small random model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters import LowRank, Replacement
from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods import method_of
from lora_jax.weights.fingerprint import fingerprint

pytestmark = pytest.mark.smoke

ATTN = "backbone/layers/attn"


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    mask = np.arange(9) < rng.integers(2, 10, (5, 1))
    return rng.integers(0, 101, (5, 9)).astype(np.int32), mask


def delta_of(base, run, *, spread=0.1):
    """Returns the materialised delta of `run` with noise added to all parameters, as if it were trained."""
    init = method_of(run.method).init(base, run)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: x + spread * rng.normal(size=x.shape).astype(np.float32), init.params)
    return method_of(run.method).materialise(params, init.constants)


def logits(model, batch):
    return np.asarray(jax.jit(lambda model: model(*batch))(model))


@pytest.mark.parametrize("settings", [{"rank": 4}, {"rank": 32, "targets": "q@0:1+mlp", "method__scaling": "rslora"}])
def test_merge_equals_graft_and_unmerge_restores_the_base(base, configure, batch, settings):
    delta = delta_of(base, configure(**settings))
    grafted, merged = graft(base, delta), merge(base, delta)
    expected = logits(grafted, batch)
    np.testing.assert_allclose(logits(merged, batch), expected, atol=1e-5)
    assert np.abs(expected - logits(base, batch)).max() > 0.1
    assert jax.tree.structure(merged) == jax.tree.structure(base)  # no slot is filled

    pairs = {path: value for path, value in delta.items() if isinstance(value, LowRank)}
    restored = parameters(merge(merge(base, pairs), pairs, sign=-1))
    for path, value in parameters(base).items():
        np.testing.assert_allclose(restored[path], value, atol=1e-6, err_msg=path)


def test_merge_adds_the_scaled_product_to_each_layers_kernel(base, configure):
    run = configure(rank=4, alpha=12, targets="q")
    init = method_of(run.method).init(base, run)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 32, 4), (3, 4, 32)))
    params = init.params | {f"{ATTN}/q/adapter": LowRank(jnp.asarray(a), jnp.asarray(b))}
    merged = merge(base, method_of(run.method).materialise(params, init.constants))
    for layer in range(3):
        expected = np.asarray(base.backbone.layers.attn.q.kernel[layer]) + 12 / 4 * a[layer] @ b[layer]
        np.testing.assert_allclose(merged.backbone.layers.attn.q.kernel[layer], expected, atol=1e-5)
    np.testing.assert_array_equal(merged.backbone.layers.attn.k.kernel, base.backbone.layers.attn.k.kernel)


def test_a_full_delta_merges_to_itself(base, configure, batch):
    delta = delta_of(base, configure("full"), spread=0.01)
    assert delta.keys() == parameters(base).keys()
    merged = merge(base, delta)
    for path, value in parameters(merged).items():
        np.testing.assert_array_equal(value, delta[path].value, err_msg=path)
    np.testing.assert_array_equal(logits(merged, batch), logits(graft(base, delta), batch))


def test_an_untrained_delta_changes_only_the_head(base, configure, batch):
    run = configure(rank=8)
    init = method_of(run.method).init(base, run)
    head = {path: value for path, value in init.params.items() if path.startswith("head/")}
    adapted = graft(base, method_of(run.method).materialise(init.params, init.constants))
    np.testing.assert_allclose(logits(adapted, batch), logits(graft(base, head), batch), atol=1e-6)


def test_graft_does_not_change_the_base(base, configure, batch):
    before, structure, output = fingerprint(base), jax.tree.structure(base), logits(base, batch)
    model = graft(base, delta_of(base, configure(rank=4)))
    assert model is not base and model.backbone.layers.attn.q is not base.backbone.layers.attn.q
    assert model.backbone.layers.attn.q.adapter is not None and base.backbone.layers.attn.q.adapter is None
    assert model.backbone.layers.attn.q.kernel[...] is base.backbone.layers.attn.q.kernel[...]  # no copy
    assert (fingerprint(base), jax.tree.structure(base)) == (before, structure)
    np.testing.assert_array_equal(logits(base, batch), output)


@pytest.mark.parametrize(
    "path", ["backbone/layers/attn/z/adapter", "backbone/layers/attn/q/adaptor", "head/kernal", "trunk/x", "kernel"]
)
def test_a_path_that_does_not_exist_is_refused(base, path):
    with pytest.raises(KeyError, match=path):
        graft(base, {path: Replacement(jnp.zeros(1))})


def test_count_is_the_number_of_parameters(base):
    assert count(base) == sum(np.asarray(value).size for value in parameters(base).values())
    width, inner, vocabulary = 32, 48, 101
    embed = (vocabulary + 512 + 2) * width + 2 * width
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    assert count(base) == embed + 3 * block + width * width + width + 7 * width + 7


@pytest.mark.parametrize("apply", [graft, merge])
@pytest.mark.parametrize(
    ("path", "adapter", "message"),
    [
        (f"{ATTN}/q/adapter", LowRank(jnp.zeros((1, 32, 4)), jnp.zeros((1, 4, 32))), r"a has the shape \[1, 32, 4\]"),
        (f"{ATTN}/q/adapter", LowRank(jnp.zeros((32, 4)), jnp.zeros((4, 32))), r"needs \[3, 32, 4\]"),
        (f"{ATTN}/q/adapter", LowRank(jnp.zeros((3, 32, 4)), jnp.zeros((3, 1, 32))), r"b has the shape \[3, 1, 32\]"),
        (f"{ATTN}/q/adapter", LowRank(jnp.zeros((3, 32, 4)), jnp.zeros((3, 4, 1))), r"needs \[3, 4, 32\]"),
        (f"{ATTN}/q/bias", Replacement(jnp.zeros((1, 32))), r"value has the shape \[1, 32\].*needs \[3, 32\]"),
        (f"{ATTN}/q/bias", Replacement(jnp.zeros((3, 32)), jnp.zeros(1, bool)), r"active has the shape \[1\]"),
        ("head/kernel", Replacement(jnp.zeros((32, 8))), r"needs \[32, 7\]"),
    ],
)
def test_an_adapter_of_other_shapes_is_refused(base, apply, path, adapter, message):
    with pytest.raises(UserError, match=rf"{path}: .*{message}"):
        jax.eval_shape(lambda adapter: apply(base, {path: adapter}), adapter)
