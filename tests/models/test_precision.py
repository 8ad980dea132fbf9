"""Products of bfloat16 operands that are summed in float32, on a CPU: ``dtype=bfloat16`` there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters import LowRank
from lora_jax.models.layers import bfloat16_product, product, takes_bfloat16


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


@pytest.fixture
def arrays():
    x, w, g = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 9, 64), (64, 32), (2, 9, 32)]))
    return x, w, g


def test_the_product_and_its_gradients_are_those_of_rounded_operands(arrays):
    x, w, g = arrays
    y, backward = jax.vjp(bfloat16_product, x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, rounded(x) @ rounded(w), rtol=2e-5, atol=2e-5)
    grad_x, grad_w = backward(g)
    np.testing.assert_allclose(grad_x, rounded(g) @ rounded(w).T, rtol=2e-5, atol=2e-5)
    expected = np.einsum("btd,bte->de", rounded(x), rounded(g))
    np.testing.assert_allclose(grad_w, expected, rtol=2e-5, atol=2e-5)


def test_only_the_setting_of_jax_narrows_products(arrays):
    x, w, _ = arrays
    exact = product(x, w)
    np.testing.assert_allclose(exact, np.asarray(x, np.float64) @ np.asarray(w, np.float64), rtol=2e-5, atol=2e-5)
    with jax.default_matmul_precision("bfloat16"):
        assert takes_bfloat16(x) and not takes_bfloat16(x.astype(jnp.bfloat16))
        np.testing.assert_array_equal(product(x, w), bfloat16_product(x, w))
    assert not takes_bfloat16(x)


def test_a_small_pair_is_not_rounded_away(arrays):
    """W + A·B in bfloat16 would lose an A·B below half a unit of W's last place."""
    x, w, _ = arrays
    a, b = 1e-3 * jax.random.normal(jax.random.key(3), (64, 4)), 1e-1 * jax.random.normal(jax.random.key(4), (4, 32))
    with jax.default_matmul_precision("bfloat16"):
        part = LowRank(a, b)(x, w, None) - product(x, w)
    expected = np.asarray(x, np.float64) @ np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert np.linalg.norm(part - expected) < 0.02 * np.linalg.norm(expected)
