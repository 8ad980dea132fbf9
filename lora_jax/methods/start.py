"""Where a run starts from, and the randomness that it starts with."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lora_jax.delta import Delta, parameters


class Start(NamedTuple):
    """`params` train; `constants` (a pytree of arrays, per run) do not: scales, rates."""

    params: Delta
    constants: Any


def key_of(seed: int, path: str) -> jax.Array:
    """The key for one path of one run: it depends on nothing else, least of all on a place in a pack."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))


def head(base: nnx.Module, seed: int, *, std: float = 0.02) -> Delta:
    """A fresh head, trained by every method: kernel N(0, std²), the same for a seed whatever the method; bias 0."""
    fresh: Delta = {}
    for path, value in parameters(base).items():
        if path.startswith("head/"):
            wide = jnp.promote_types(value.dtype, jnp.float32)
            if path.endswith("kernel"):
                fresh[path] = std * jax.random.normal(key_of(seed, path), value.shape, wide)
            else:
                fresh[path] = jnp.zeros(value.shape, wide)
    return fresh
