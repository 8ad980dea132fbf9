"""Placement of arrays. Training puts arrays on the device through this module alone. It uses one device."""

from typing import Any

import jax
import numpy as np


def put_parameter(path: str, array: np.ndarray) -> jax.Array:
    """Puts a parameter of the frozen base, at `path`, on the device.

    On a CPU, JAX uses the memory of an aligned array and copies any other, so `array` must not change afterwards.
    """
    return jax.device_put(array)


def put_batch(batch: Any) -> Any:
    """Puts a batch, or its prompts, on the device."""
    return jax.device_put(batch)


def put_runs(tree: Any) -> Any:
    """Puts stacked arrays of runs, leaves ``[runs, ...]``, on the device."""
    return jax.device_put(tree)
