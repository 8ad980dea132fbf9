"""VeRA and MiSS here and in Hugging Face's PEFT: from the same start, on the same batches, the same training."""

import jax
import numpy as np
import pytest
from helpers.peft_reference import (
    LAYERS,
    SETTINGS,
    SITES,
    STEPS,
    TARGETS,
    adapted,
    assert_merged_equal,
    copy,
    packed_run,
    reference,
    train_reference,
)

peft = pytest.importorskip("peft")

COMMON = {"task_type": "SEQ_CLS", "target_modules": TARGETS}
RATES = {"vera": 5e-2, "miss": 5e-3}


def vera_reference(start):
    """PEFT's model with A and B of `start`: those of the sites with the most inputs and outputs are whole."""
    model = reference(peft.VeraConfig(r=16, vera_dropout=0.0, projection_prng_key=0, **COMMON), start.params)
    a = start.constants["backbone/layers/mlp/down/adapter"].a
    b = start.constants["backbone/layers/mlp/up/adapter"].b
    for site in SITES:
        for layer in range(LAYERS):
            module = adapted(model, site, layer)
            copy(module.vera_A["default"], a.T)
            copy(module.vera_B["default"], b.T)
            vectors = start.params[f"backbone/layers/{site}/adapter"]
            np.testing.assert_array_equal(module.vera_lambda_d["default"].detach().numpy(), vectors.d[layer])
            np.testing.assert_array_equal(module.vera_lambda_b["default"].detach().numpy(), vectors.b[layer])
    return model


def miss_reference(start):
    """PEFT's model, which starts from zeros as ours does."""
    return reference(peft.MissConfig(r=10, miss_dropout=0.0, **COMMON), start.params)


# 10 does not divide the widths, 384 and 1536, so the last shards are padded.
@pytest.mark.parametrize("method, rank, make", [("vera", 16, vera_reference), ("miss", 10, miss_reference)])
def test_training_follows_pefts(pack_of, configure, method, rank, make):
    run = configure(method, rank=rank, **SETTINGS | {"lr": RATES[method]})
    base, pack = packed_run(pack_of, run)
    [start] = pack.inits
    model = make(start)
    trained = train_reference(model, run, pack.batches)
    pack.train(base, STEPS)

    assert trained.trainable == start.trainable == sum(leaf.size for leaf in jax.tree.leaves(start.params))
    np.testing.assert_allclose(pack.metrics.grad_norm[:, 0], trained.norms, rtol=2e-3)
    difference = np.abs(pack.metrics.loss[:, 0] - trained.losses).max()
    print(f"\n{method}: in {STEPS} steps the loss differs by {difference:.1e} from PEFT's")
    assert difference < 1e-3
    assert trained.losses[-5:].mean() != pytest.approx(trained.losses[:5].mean(), rel=1e-3)
    assert_merged_equal(base, pack.materialised(0), model, tolerance=3e-4)
