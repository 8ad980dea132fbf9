"""Initial values of LoRA's pairs that are not random: PiSSA and LoRA-GA."""

import jax
import numpy as np
import pytest
from helpers.lora_runs import ATTN, HEAD, MLP, init

from lora_jax.adapters import LowRank, Replacement
from lora_jax.delta import graft, parameters
from lora_jax.models.options import ComputeOptions
from lora_jax.train.objective import OBJECTIVES, batch_loss

# ---- PiSSA


def test_pissas_pair_is_the_best_approximation_of_its_rank(base, configure):
    run = configure(rank=6, targets="q+mlp", alpha=3, method__init="pissa", method__rank_pattern={"q@1": 2})
    start = init(base, run)
    for site, ranks in ((f"{ATTN}/q", (6, 2, 6)), (f"{MLP}/up", (6, 6, 6))):
        pair, scale = start.params[f"{site}/adapter"], start.constants[f"{site}/adapter"].scale
        for layer, rank in enumerate(ranks):
            w = np.asarray(parameters(base)[f"{site}/kernel"][layer], np.float64)
            u, s, vt = np.linalg.svd(w, full_matrices=False)
            np.testing.assert_allclose(
                scale[layer] * pair.product()[layer], u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-5
            )
            # A and B share the singular values evenly.
            np.testing.assert_allclose(
                np.linalg.norm(pair.a[layer], axis=0)[:rank], np.linalg.norm(pair.b[layer], axis=1)[:rank], rtol=1e-4
            )
            assert not pair.a[layer, :, rank:].any() and not pair.b[layer, rank:].any()
    assert start.trainable == (6 + 2 + 6) * 64 + 3 * 6 * 80 * 2 + HEAD
    assert isinstance(start.constants[f"{ATTN}/q/initial"], LowRank)


def test_only_runs_with_a_residual_share_its_program(configure):
    plain, gaussian, pissa = (configure(method__init=name) for name in ("uniform", "gaussian", "pissa"))
    assert plain.program_key() == gaussian.program_key() != pissa.program_key()


# ---- LoRA-GA


def test_lora_gas_pair_has_singular_vectors_of_the_first_gradient(base, configure, pack_of):
    run = configure(
        rank=4,
        targets="q+mlp@1:",
        batch=8,
        seed=2,
        method__init="lora_ga",
        method__gradient_batches=3,
        method__gamma=25.0,
    )
    pack = pack_of(base, [run])
    start, paths = pack.inits[0], (f"{ATTN}/q", f"{MLP}/down")
    head = {path: value for path, value in start.params.items() if path.startswith("head/")}

    def loss(kernels, batch):
        model = graft(base, head | {f"{path}/kernel": Replacement(kernel) for path, kernel in kernels.items()})
        return batch_loss(OBJECTIVES["classification"], model, batch, options=ComputeOptions())

    kernels = {path: parameters(base)[f"{path}/kernel"] for path in paths}
    batches = [jax.tree.map(lambda leaf: leaf[0], pack.example(step)) for step in range(3)]
    gradients = [jax.jit(jax.grad(loss))(kernels, batch) for batch in batches]
    for path, layers in zip(paths, ((0, 1, 2), (1, 2)), strict=True):
        pair = start.params[f"{path}/adapter"]
        for layer in layers:
            gradient = np.mean([np.asarray(each[path][layer], np.float64) for each in gradients], 0)
            u, s, vt = np.linalg.svd(gradient)
            stable = 32**0.25 / 5
            # A and B are known up to the signs of singular vectors.
            np.testing.assert_allclose(np.abs(u[:, :4].T @ pair.a[layer]), stable * np.eye(4), atol=2e-3)
            if s[7] > 1e-3 * s[0]:  # smaller ones are noise in float32
                np.testing.assert_allclose(np.abs(pair.b[layer] @ vt[4:8].T), stable * np.eye(4), atol=2e-2)
            np.testing.assert_allclose(pair.b[layer] @ pair.b[layer].T, stable**2 * np.eye(4), atol=1e-5)
    assert not start.params[f"{MLP}/down/adapter"].a[0].any()


def test_lora_ga_without_gradients_is_an_error(base, configure):
    with pytest.raises(KeyError):
        init(base, configure(rank=4, targets="q", method__init="lora_ga"))
