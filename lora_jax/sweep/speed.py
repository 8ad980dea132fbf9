"""How long a pack will take, roughly, before any of it is compiled."""

import functools
import time

import jax
import jax.numpy as jnp

# What steps reach of a square product's rate: 0.6 on 2 CPU cores (MiniLM, LoRA and in full), on an H100 from 0.1
# (SmolLM2-135M on texts of 64 tokens) to 0.6 (8B on 4 x 1024).
UTILISATION = 0.5


def rough_seconds(flops: float, dtype: str) -> float:
    """Returns the seconds that steps of `flops` take in all on this device.

    Right within a factor of two or so; within five on a GPU that a small model leaves idle.
    """
    return flops / (UTILISATION * product_rate(dtype))


@functools.cache
def product_rate(dtype: str) -> float:
    """Returns the FLOP/s of a square product on this device, its best of three."""
    width = 1024 if jax.default_backend() == "cpu" else 4096
    square = jnp.full((width, width), 1 / width, dtype)
    product = jax.jit(jnp.matmul)

    def seconds() -> float:
        start_time = time.perf_counter()
        product(square, square).block_until_ready()
        return time.perf_counter() - start_time

    seconds()  # compiles
    return 2 * width**3 / min(seconds() for _ in range(3))
