"""The kernels, interpreted, against plain JAX in float32; and which products they take."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters import low_rank as adapters
from lora_jax.adapters.low_rank import LowRank
from lora_jax.kernels import low_rank
from lora_jax.models.layers import Linear, apply_together
from lora_jax.models.quantised import quantise

ROWS, D_IN = 512, 128
# Rounding to bfloat16, of inputs' products and of results, is 2^-9 at most each time.
TOLERANCE = 5e-3


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def inputs(widths, rank, runs=()):
    """Returns x, the kernels, and the pairs of some projections, with values of order one."""
    x = draw(0, *runs, 2, ROWS // 2, D_IN)
    kernels = [draw(1 + i, D_IN, width) / D_IN**0.5 for i, width in enumerate(widths)]
    pairs = [
        (draw(10 + i, *runs, D_IN, rank) / D_IN**0.5, draw(20 + i, *runs, rank, width))
        for i, width in enumerate(widths)
    ]
    return x, kernels, pairs


def value_and_gradients(products, x, kernels, pairs):
    results, pull_back = jax.vjp(lambda x, pairs: products(x, kernels, pairs), x, pairs)
    cotangents = [jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype) for y in results]
    return results, pull_back(cotangents)


def in_float32(x, kernels, pairs):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (x, kernels, pairs))


def assert_close(actual, expected):
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        assert np.linalg.norm(ours - theirs) < TOLERANCE * np.linalg.norm(theirs)


@pytest.mark.parametrize("widths, rank", [((64,), 1), ((192,), 16), ((128, 64, 64), 8), ((1024, 64), 33), ((256,), 64)])
def test_products_and_their_gradients_are_those_of_plain_jax(widths, rank):
    given = inputs(widths, rank)
    actual = jax.jit(lambda *given: value_and_gradients(low_rank.products, *given))(*given)
    expected = value_and_gradients(low_rank.plain_products, *in_float32(*given))
    assert all(y.dtype == jnp.bfloat16 for y in actual[0])
    assert_close(actual, expected)


def test_runs_share_a_kernel_under_vmap():
    x, kernels, pairs = inputs((64, 128), 4, runs=(3,))

    def packed(products, x, kernels, pairs):
        return jax.vmap(lambda x, pairs: value_and_gradients(products, x, kernels, pairs))(x, pairs)

    actual = jax.jit(lambda *given: packed(low_rank.products, *given))(x, kernels, pairs)
    assert_close(actual, packed(low_rank.plain_products, *in_float32(x, kernels, pairs)))


def test_a_run_may_have_a_kernel_of_its_own():
    """PiSSA's runs have other bases."""
    x, kernels, pairs = inputs((64,), 4, runs=(2,))
    own = [jnp.stack([kernels[0], -2 * kernels[0]])]
    actual = jax.vmap(low_rank.products)(x, own, pairs)
    assert_close(actual, jax.vmap(low_rank.plain_products)(*in_float32(x, own, pairs)))


def test_a_padded_rank_has_no_gradient():
    x, kernels, [(a, b)] = inputs((64,), 4)
    padded = [(jnp.pad(a, ((0, 0), (0, 5))), jnp.pad(b, ((0, 5), (0, 0))))]
    _, (_, [(grad_a, grad_b)]) = value_and_gradients(low_rank.products, x, kernels, padded)
    assert not grad_a[:, 4:].any() and not grad_b[4:].any() and grad_a[:, :4].any() and grad_b[:4].any()


@pytest.mark.parametrize("kind", ["int8", "nf4", "float32"])
def test_a_kernel_stored_in_another_dtype_is_converted(kind):
    x, [kernel], pairs = inputs((64,), 4)
    wide = kernel.astype(jnp.float32)
    stored = wide if kind == "float32" else quantise(wide, kind)
    actual = value_and_gradients(low_rank.products, x, [stored], pairs)
    assert_close(actual, value_and_gradients(low_rank.products, x, [stored.astype(jnp.bfloat16)], pairs))


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 384},
        {"rows": 1},
        {"d_in": 96},
        {"d_in": 4096},
        {"d_out": 1000},
        {"d_out": 49152},
        {"rank": 65},
        {"rank": 17, "count": 3},
        {"dtype": jnp.float32},
    ],
)
def test_what_the_kernels_do_not_take(changes):
    def fits(rows=512, d_in=128, d_out=64, rank=16, count=1, dtype=jnp.bfloat16):
        return low_rank.fits(jnp.zeros((1, rows, d_in), dtype), [jnp.zeros((d_in, d_out))] * count, rank)

    assert fits() and fits(dtype=jnp.float16) and fits(count=3) and not fits(**changes)


@pytest.fixture
def calls(monkeypatch):
    """Records how many projections each call of the kernels has."""
    counts, original = [], low_rank.products

    def record(x, kernels, pairs):
        counts.append(len(kernels))
        return original(x, kernels, pairs)

    monkeypatch.setattr(low_rank, "products", record)
    return counts


def linear(kernel, adapter, bias=None):
    """Returns a layer that has what `Linear` has, after grafting."""
    layer = types.SimpleNamespace(adapter=adapter, bias=bias, kernel=types.SimpleNamespace(get_value=lambda: kernel))
    layer.add_bias = lambda y: Linear.add_bias(layer, y)
    return layer


def test_layers_that_read_one_input_are_one_call(calls):
    x, kernels, pairs = inputs((128, 64), 4)
    layers = [linear(w, LowRank(a, b).fused(x.dtype)) for w, (a, b) in zip(kernels, pairs, strict=True)]
    layers[1].bias = jnp.ones(64)
    actual = apply_together(layers, x, [None, None])
    first, second = low_rank.plain_products(*in_float32(x, kernels, pairs))
    assert_close(actual, [first, second + 1])
    assert calls == [2]


def test_a_group_of_too_large_ranks_is_applied_one_by_one(calls):
    x, kernels, pairs = inputs((128, 64), 33)
    fused = [LowRank(a, b).fused(x.dtype) for a, b in pairs]
    actual = adapters.FusedLowRank.apply_together(fused, x, kernels, [None, None])
    assert_close(actual, low_rank.plain_products(*in_float32(x, kernels, pairs)))
    assert calls == [1, 1]


@pytest.mark.parametrize("reason", ["dropout", "rows"])
def test_other_calls_are_those_of_a_plain_pair(calls, reason):
    x, kernels, pairs = inputs((128, 64), 4)
    x = x[:, :100] if reason == "rows" else x
    rate = jnp.float32(0.5) if reason == "dropout" else None
    plain = [LowRank(a, b, rate) for a, b in pairs]
    fused = [pair.fused(x.dtype) for pair in plain]
    keys = [jax.random.key(i) for i in range(2)]
    actual = adapters.FusedLowRank.apply_together(fused, x, kernels, keys)
    expected = [pair(x, w, key) for pair, w, key in zip(plain, kernels, keys, strict=True)]
    assert_close(actual, expected)
    assert calls == []


def test_without_a_key_nothing_is_dropped_out(calls):
    x, [kernel], [(a, b)] = inputs((64,), 4)
    pair = LowRank(a, b, jnp.float32(0.5), jnp.float32(0.5))
    assert_close(pair.fused(x.dtype)(x, kernel, None), dataclasses.replace(pair, dropout=None)(x, kernel, None))
    assert calls == [1]


def test_dropout_of_the_factors_is_kept(calls):
    x, [kernel], [(a, b)] = inputs((64,), 4)
    pair, key = LowRank(a, b, None, jnp.float32(0.5)), jax.random.key(0)
    assert_close(pair.fused(x.dtype)(x, kernel, key), pair(x, kernel, key))
    assert calls == [1]


def test_a_product_smaller_than_rounding_is_not_lost():
    """x·W is added in float32. Rounded first, it would swallow every t·B below half a unit in its last place."""
    x, kernels, [(a, b)] = inputs((256,), 4)
    small = b * 1e-4
    expected = low_rank.plain_products(*in_float32(x, [jnp.zeros_like(kernels[0])], [(a, small)]))[0]

    def share_that_remains(products):
        with_pair, without = (products(x, kernels, [(a, factor)])[0] for factor in (small, 0 * small))
        difference = (with_pair.astype(jnp.float32) - without.astype(jnp.float32)).ravel()
        return float(difference @ expected.ravel() / (expected.ravel() @ expected.ravel()))

    assert share_that_remains(low_rank.products) == pytest.approx(1, abs=0.1)
    assert share_that_remains(low_rank.plain_products) < 0.2
