"""Checks that a run in a pack equals the run alone, for any method."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.config import RunConfig
from lora_jax.train.pack import packed_step

# Compilation takes most of the time, and the result does not depend on XLA's optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def compiled(pack: Any, base: Any, options: dict[str, Any] | None = None) -> Any:
    """Returns the compiled train step of `pack`."""
    arguments = (base, pack.state, pack.constants, pack.hyper, pack.example())
    return packed_step(pack.program).lower(*arguments).compile(options)


def assert_packed_equals_alone(
    base: Any, pack_of: Callable[..., Any], runs: Sequence[RunConfig], *, steps: int, tolerance: float = 1e-9
) -> None:
    """Trains `runs` in one pack and each alone, in float64, and compares their losses and trained parameters.

    Args:
      base: a float32 model. It is widened.
      pack_of: the fixture.
      runs: runs of one program, with ``dtype="float64"`` and at least `steps` steps.
      steps: the number of steps.
      tolerance: the largest relative difference of losses, and of parameters relative to their largest value.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), base)
        together = pack_of(wide, runs)
        together.train(wide, steps, compiled(together, wide, QUICK))
        for i, run in enumerate(runs):
            alone = pack_of(wide, [run])
            alone.train(wide, steps, compiled(alone, wide, QUICK))
            assert alone.metrics.live.all() and together.metrics.live[:, i].all()
            np.testing.assert_allclose(together.metrics.loss[:, i], alone.metrics.loss[:, 0], rtol=tolerance)
            packed, single = together.params(i), alone.params(0)
            assert packed.keys() == single.keys()
            initial = alone.inits[0].params
            for path, expected in single.items():
                for actual, leaf, start in zip(
                    *map(jax.tree.leaves, (packed[path], expected, initial[path])), strict=True
                ):
                    scale = np.abs(leaf).max()
                    np.testing.assert_allclose(actual, leaf, rtol=0, atol=tolerance * max(scale, 1e-3), err_msg=path)
                    assert actual.shape == start.shape, path
            assert any(
                np.abs(leaf - start).max() > 1e-3
                for path in single
                for leaf, start in zip(jax.tree.leaves(single[path]), jax.tree.leaves(initial[path]), strict=True)
            )
