"""Rough estimates of training time, before compilation."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

# FLOP/s of a train step over FLOP/s of a square product. Measured: 0.6 on 2 CPU cores (MiniLM, LoRA and full
# fine-tuning), and on an H100 from 0.1 (SmolLM2-135M on texts of 64 tokens) to 0.6 (8B on 4 x 1024).
UTILISATION = 0.5


def rough_seconds(flops: float, dtype: str) -> float:
    """Returns the seconds that `flops` of training take on this device.

    The error is within a factor of about two, or five on a GPU that a small model does not fill.
    """
    return flops / (UTILISATION * product_flops_per_second(dtype))


@functools.cache
def product_flops_per_second(dtype: str) -> float:
    """Returns the FLOP/s of a square matrix product on this device, the best of three."""
    width = 1024 if jax.default_backend() == "cpu" else 4096
    square = jnp.asarray(np.full((width, width), 1 / width, jnp.dtype(dtype)))
    product = jax.jit(jnp.matmul)

    def seconds() -> float:
        start_time = time.perf_counter()
        product(square, square).block_until_ready()
        return time.perf_counter() - start_time

    seconds()  # compiles
    return 2 * width**3 / min(seconds() for _ in range(3))
