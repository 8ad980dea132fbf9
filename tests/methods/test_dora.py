"""DoRA: its paper's equation 5, its norms, and their gradients; on a quantised base; not undone after merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lora_runs import ATTN, HEAD, MASK, MLP, TOKENS, delta_of, init, with_head_of
from helpers.method_runs import moved

from lora_jax.adapters import Dora
from lora_jax.adapters.dora import column_norms
from lora_jax.delta import graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.models.quantised import quantise


def direct(w, a, b, m):
    total = np.asarray(w, np.float64) + np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return m * total / np.linalg.norm(total, axis=0)


def test_dora_is_its_papers_equation_5(base, configure):
    run = configure(rank=4, targets="q+mlp", alpha=8, method__dora=True)
    start = init(base, run)
    params = moved(start.params)
    merged = parameters(merge(base, delta_of(run, params, start.constants)))
    for site in (f"{ATTN}/q", f"{MLP}/down"):
        for layer in range(3):
            pair, m = params[f"{site}/adapter"], params[f"{site}/magnitude"].value[layer]
            w = parameters(base)[f"{site}/kernel"][layer]
            np.testing.assert_allclose(
                merged[f"{site}/kernel"][layer], direct(w, pair.a[layer], 2 * pair.b[layer], m), atol=1e-6
            )
    assert start.trainable == 3 * 4 * (64 + 2 * 80) + 3 * (32 + 48 + 32) + HEAD


def test_column_norms_in_float32_are_those_of_the_sum():
    rng = np.random.default_rng(0)
    w, a = rng.normal(size=(256, 64), scale=0.05), rng.normal(size=(256, 16), scale=0.06)
    for size in (0, 1e-4, 0.05, 5):
        b = rng.normal(size=(16, 64), scale=size)
        expected = np.linalg.norm(w + a @ b, axis=0)
        actual = column_norms(*(jnp.asarray(array, jnp.float32) for array in (w, a, b)))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_doras_norm_is_a_constant_in_the_gradient(base):
    w = parameters(base)[f"{ATTN}/q/kernel"][0]
    rng = np.random.default_rng(0)
    x, a, b, m = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 5, 32), (32, 4), (4, 32), (32,)))

    def ours(a, b, m):
        return jnp.sin(Dora(a, b, m, jnp.bool_(True))(x, w, None)).sum()

    def theirs(a, b, m):
        total = w + a @ b
        return jnp.sin(x @ (m * total / jax.lax.stop_gradient(jnp.linalg.norm(total, axis=0)))).sum()

    for actual, expected in zip(*(jax.grad(f, (0, 1, 2))(a, b, m) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_a_dora_that_is_not_active_is_the_base_and_a_column_of_zeros_has_no_nan(base):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 32)), jnp.float32)
    w = parameters(base)[f"{ATTN}/q/kernel"][0].at[:, 3].set(0)
    zeros = Dora(jnp.zeros((32, 2)), jnp.zeros((2, 32)), jnp.zeros(32), jnp.bool_(False))
    np.testing.assert_allclose(zeros(x, w, None), x @ w, atol=1e-6)

    def total(magnitude, active):
        return Dora(zeros.a, zeros.b, magnitude, active)(x, w, None).sum()

    for active in (True, False):
        grads = jax.grad(total)(zeros.magnitude, jnp.bool_(active))
        assert np.isfinite(grads).all() and grads.any() == active


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_dora_on_a_quantised_base_rescales_the_dequantised_kernel(base, configure, kind):
    kernels = {path: quantise(w, kind) for path, w in parameters(base).items() if path == f"{ATTN}/q/kernel"}
    narrow = graft(base, {})
    narrow.backbone.layers.attn.q.kernel.set_value(kernels[f"{ATTN}/q/kernel"])
    wide = graft(base, {})
    wide.backbone.layers.attn.q.kernel.set_value(kernels[f"{ATTN}/q/kernel"].astype(jnp.float32))
    run = configure(rank=4, targets="q", method__dora=True, method__init="pissa")
    for model in (narrow, wide):
        start = init(model, run)
        expected = with_head_of(model, start)(TOKENS, MASK)
        logits = graft(model, delta_of(run, start.params, start.constants))(TOKENS, MASK)
        np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    delta = delta_of(run, moved(start.params), start.constants)
    results = [graft(model, delta)(TOKENS, MASK) for model in (narrow, wide)]
    np.testing.assert_allclose(*results, atol=1e-5 * np.abs(results[0]).max())
    np.testing.assert_allclose(merge(narrow, delta)(TOKENS, MASK), results[0], atol=1e-5 * np.abs(results[0]).max())


def test_a_merged_dora_cannot_be_undone(base, configure):
    run = configure(rank=4, targets="q", method__dora=True)
    start = init(base, run)
    with pytest.raises(UserError, match="cannot be undone after merging"):
        merge(base, delta_of(run, start.params, start.constants), sign=-1)
