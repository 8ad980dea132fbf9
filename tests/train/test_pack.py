"""A run in a pack is the run that it would be alone: ranks, targets, rates and seeds of its neighbours change nothing.

`pytest tests/train/test_pack.py -s -k float32` prints how far rounding takes the two apart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters import LowRank
from lora_jax.errors import UserError
from lora_jax.train.pack import packed_step

STEPS = 100
# Compiling is most of the time here, and what is shown does not depend on how well XLA optimises.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Rates at which training is stable: past that it is chaotic, and any rounding at all grows tenfold every few steps.
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


def compiled(pack, base, options):
    arguments = (base, pack.state, pack.constants, pack.hyper, pack.example())
    return packed_step(pack.program).lower(*arguments).compile(options)


def differences(together, run, alone):
    """Largest relative difference of the losses, of any site's ΔW and of the head, of a run in a pack and alone."""

    def relative(got, expected):
        return float(np.abs(got - expected).max() / np.abs(expected).max())

    ours, own = together.materialised(run), alone.materialised(0)
    assert ours.keys() == own.keys()
    sites = [path for path, value in own.items() if isinstance(value, LowRank)]
    assert all(np.abs(own[path].product()).max() > 0.01 for path in sites)
    assert all(ours[path].a.shape == own[path].a.shape for path in sites)
    return {
        "loss": float(np.abs(together.metrics.loss[:, run] / alone.metrics.loss[:, 0] - 1).max()),
        "delta": max(relative(ours[path].product(), own[path].product()) for path in sites),
        "head": max(relative(ours[path].value, own[path].value) for path in ("head/kernel", "head/bias")),
    }


def compare(base, pack_of, runs, options=None):
    """`differences` of every run after STEPS steps."""
    together = pack_of(base, runs)
    together.train(base, STEPS, compiled(together, base, options))
    found = []
    for i, run in enumerate(runs):
        alone = pack_of(base, [run])
        alone.train(base, STEPS, compiled(alone, base, options))
        assert alone.metrics.live.all() and together.metrics.live.all()
        found.append(differences(together, i, alone))
    return found


def test_a_run_in_a_pack_is_the_run_alone_in_float64_with_dropout(base, pack_of, configure):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), base)
        runs = [
            configure(**run, **dropout, steps=STEPS, batch=8, dtype="float64")
            for run, dropout in zip(RUNS, DROPOUT, strict=True)
        ]
        found = compare(wide, pack_of, runs, QUICK)
    print("\nfloat64, with dropout:", *found, sep="\n")
    assert max(value for run in found for value in run.values()) < 1e-9


def test_a_run_in_a_pack_is_the_run_alone_in_float32_but_for_rounding(base, pack_of, configure):
    found = compare(base, pack_of, [configure(**run, steps=STEPS, batch=8) for run in RUNS])
    print("\nfloat32:", *found, sep="\n")
    assert max(run["loss"] for run in found) < 1e-5
    assert max(max(run["delta"], run["head"]) for run in found) < 1e-4


def test_an_optimizer_that_is_not_elementwise_refuses_padding(base, pack_of, configure):
    runs = [configure(optim="adafactor", rank=rank, steps=10, batch=8, lr=1e-2) for rank in (4, 8)]
    with pytest.raises(UserError, match=r"optim=adafactor: .* use pack=1, or one of adamw, sgd, lion"):
        pack_of(base, runs)
    same = pack_of(base, [runs[0], runs[0].model_copy(update={"seed": 5})]).train(base, 10)
    assert same.metrics.live.all()
