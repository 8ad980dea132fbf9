"""A run in a pack equals the run alone, whatever the ranks, targets, learning rates and seeds of the other runs.

`pytest tests/train/test_pack.py -s -k float32` prints the differences that rounding makes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.packed import QUICK, compiled

from lora_jax.adapters import LowRank
from lora_jax.errors import UserError

STEPS = 100
# Training is stable at these learning rates. At higher ones it is chaotic, and rounding errors grow tenfold every few
# steps.
RUNS = [
    {"rank": 4, "targets": "q", "lr": 1e-2, "seed": 3, "alpha": 16, "optim__weight_decay": 0.1},
    {"rank": 8, "targets": "qv", "lr": 3e-3, "seed": 1, "optim__clip_norm": 0.1, "method__scaling": "rslora"},
    {"rank": 16, "targets": "qkvo@1:", "lr": 5e-3, "seed": 2, "optim__warmup": 0.3, "method__init": "gaussian"},
    {"rank": 32, "targets": "all", "lr": 1e-3, "seed": 1, "optim__weight_decay": 0.3, "optim__b2": 0.99},
]
DROPOUT = [
    {"dropout": 0.1, "method__dropout": 0.3},
    {"dropout": 0.2, "method__dropout": 0.0},
    {"dropout": 0.0, "method__dropout": 0.1},
    {"dropout": 0.3, "method__dropout": 0.2},
]


def differences(together, run, alone):
    """Returns the largest relative differences of losses, ΔW and head between a run in a pack and the run alone."""

    def relative(actual, expected):
        return float(np.abs(actual - expected).max() / np.abs(expected).max())

    packed, single = together.materialised(run), alone.materialised(0)
    assert packed.keys() == single.keys()
    sites = [path for path, value in single.items() if isinstance(value, LowRank)]
    assert all(np.abs(single[path].product()).max() > 0.01 for path in sites)
    assert all(packed[path].a.shape == single[path].a.shape for path in sites)
    return {
        "loss": float(np.abs(together.metrics.loss[:, run] / alone.metrics.loss[:, 0] - 1).max()),
        "delta": max(relative(packed[path].product(), single[path].product()) for path in sites),
        "head": max(relative(packed[path].value, single[path].value) for path in ("head/kernel", "head/bias")),
    }


def compare(base, pack_of, runs, options=None):
    """Returns the `differences` of every run after STEPS steps."""
    together = pack_of(base, runs)
    together.train(base, STEPS, compiled(together, base, options))
    results = []
    for i, run in enumerate(runs):
        alone = pack_of(base, [run])
        alone.train(base, STEPS, compiled(alone, base, options))
        assert alone.metrics.live.all() and together.metrics.live.all()
        results.append(differences(together, i, alone))
    return results


@pytest.mark.slow
def test_a_run_in_a_pack_equals_the_run_alone_in_float64_with_dropout(base, pack_of, configure):
    with jax.enable_x64(True):
        base_float64 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), base)
        runs = [
            configure(**run, **dropout, steps=STEPS, batch=8, dtype="float64")
            for run, dropout in zip(RUNS, DROPOUT, strict=True)
        ]
        results = compare(base_float64, pack_of, runs, QUICK)
    print("\nfloat64, with dropout:", *results, sep="\n")
    assert max(value for run in results for value in run.values()) < 1e-9


@pytest.mark.slow
def test_a_run_in_a_pack_equals_the_run_alone_in_float32_up_to_rounding(base, pack_of, configure):
    results = compare(base, pack_of, [configure(**run, steps=STEPS, batch=8) for run in RUNS])
    print("\nfloat32:", *results, sep="\n")
    assert max(run["loss"] for run in results) < 1e-5
    assert max(max(run["delta"], run["head"]) for run in results) < 1e-4


def test_an_optimizer_that_is_not_elementwise_refuses_padding(base, pack_of, configure):
    runs = [configure(optim="adafactor", rank=rank, steps=10, batch=8, lr=1e-2) for rank in (4, 8)]
    with pytest.raises(UserError, match=r"optim=adafactor: .* use pack=1, or one of adamw, sgd, lion"):
        pack_of(base, runs)
    equal_ranks = pack_of(base, [runs[0], runs[0].model_copy(update={"seed": 5})]).train(base, 10)
    assert equal_ranks.metrics.live.all()
