"""Where arrays live. This is the only file that puts anything on a device; there is one device for now."""

from typing import Any

import jax
import numpy as np


def put_parameter(path: str, array: np.ndarray) -> jax.Array:
    """Puts a parameter of the frozen base, at `path`, on the device.

    On a CPU JAX takes an aligned array as its own and copies any other, so `array` must not be written to afterwards.
    """
    return jax.device_put(array)


def put_batch(batch: Any) -> Any:
    """Puts a batch, or the prompts of one, on the device."""
    return jax.device_put(batch)


def put_runs(tree: Any) -> Any:
    """Puts what belongs to the runs of a pack, leaves ``[runs, ...]``, on the device."""
    return jax.device_put(tree)
