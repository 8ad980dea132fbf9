"""Every kind of adapter: padding and cutting are exact, what is neutral changes nothing, optional fields are filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters import (
    ADAPTERS,
    Activity,
    BottleneckBiases,
    BottleneckKernels,
    HeadFactors,
    InputFactor,
    LearningRateFactor,
    LowRank,
    Magnitude,
    MissBlock,
    MissIndex,
    OutputFactor,
    OutputMask,
    OutputReplacement,
    Prefix,
    Replacement,
    Scaling,
    TopReplacement,
    VeraProjections,
    VeraVectors,
    VirtualRows,
    VirtualStates,
    VirtualTokens,
    Visibility,
)
from lora_jax.delta import graft, parameters
from lora_jax.methods import method_of

pytestmark = pytest.mark.smoke

Q, BIAS = "backbone/layers/attn/q/adapter", "backbone/layers/attn/q/bias"


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def test_every_kind_has_a_name_in_adapter_files():
    assert set(ADAPTERS.values()) == {LowRank, Scaling, Replacement, Activity} | {
        BottleneckBiases,
        BottleneckKernels,
        HeadFactors,
        InputFactor,
        LearningRateFactor,
        TopReplacement,
        OutputReplacement,
        OutputMask,
        Magnitude,
        OutputFactor,
        MissBlock,
        MissIndex,
        VeraProjections,
        VeraVectors,
        Prefix,
        VirtualRows,
        VirtualStates,
        VirtualTokens,
        Visibility,
    }


def test_a_pair_is_padded_with_zeros_and_cut_back(base, configure):
    run = configure(rank=4, targets="q+mlp")
    params = method_of(run.method).init(base, run).params
    pairs = {path: value for path, value in params.items() if isinstance(value, LowRank)}
    assert len(pairs) == 3 and all(pair.size == 4 for pair in pairs.values())
    for pair in pairs.values():
        wide = pair.resize(7)
        assert wide.size == 7
        np.testing.assert_array_equal(wide.product(), pair.product())
        assert not wide.a[..., 4:].any() and not wide.b[..., 4:, :].any()
        for cut, original in zip(jax.tree.leaves(wide.resize(4)), jax.tree.leaves(pair), strict=True):
            np.testing.assert_array_equal(cut, original)


def test_a_product_is_float32_at_least():
    a, b = draw(2, 6, 3, dtype=jnp.bfloat16), draw(2, 3, 5, dtype=jnp.bfloat16)
    product = LowRank(a, b).product()
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, np.asarray(a, np.float32) @ np.asarray(b, np.float32), atol=1e-6)


def test_what_has_no_axis_to_pad_has_no_size():
    assert Replacement(draw(3, 4)).size is None and Scaling(draw(3)).size is None


def test_a_neutral_adapter_leaves_the_model_as_it_is(base):
    tokens = np.arange(18).reshape(2, 9) % 101
    expected = base(tokens, tokens >= 0)
    pair = LowRank(draw(3, 32, 2), draw(3, 2, 32)).neutral()
    np.testing.assert_allclose(graft(base, {Q: pair})(tokens, tokens >= 0), expected, atol=1e-6)
    bias = Replacement(draw(3, 32), jnp.ones(3, bool)).neutral()
    np.testing.assert_array_equal(graft(base, {BIAS: bias})(tokens, tokens >= 0), expected)


def test_a_replacement_keeps_the_bases_value_and_has_no_gradient_where_it_is_not_active(base):
    value, active = draw(3, 32), jnp.array([True, False, True])
    replaced = parameters(graft(base, {BIAS: Replacement(value, active)}))[BIAS]
    np.testing.assert_array_equal(replaced[jnp.array([0, 2])], value[jnp.array([0, 2])])
    np.testing.assert_array_equal(replaced[1], parameters(base)[BIAS][1])

    def total(value):
        return parameters(graft(base, {BIAS: Replacement(value, active)}))[BIAS].sum()

    np.testing.assert_array_equal(jax.grad(total)(value).any(-1), active)


def test_optional_fields_are_completed_with_zeros():
    plain, dropped = Scaling(draw(3)), Scaling(draw(3), draw(3))
    np.testing.assert_array_equal(plain.complete(dropped).dropout, np.zeros(3))
    assert plain.complete(plain).dropout is None and dropped.complete(plain) is not None
    np.testing.assert_array_equal(dropped.complete(plain).dropout, dropped.dropout)
