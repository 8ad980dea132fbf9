"""How much memory a run takes, predicted from shapes before anything is compiled."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.data.batches import Batch
from lora_jax.methods import Start
from lora_jax.train.optimizer import Hyper
from lora_jax.train.step import Program, logits_of, start_state

# Of what is free. XLA's own temporaries are not predicted: its plan was up to 1.8 times the prediction on a CPU.
USABLE = 0.5


def run_bytes(program: Program, base: nnx.Module, start: Start, hyper: Hyper, batch: int, length: int) -> int:
    """Bytes that one more run adds to a pack: its state, gradient and update, and what its backward pass keeps.

    What the backward pass keeps is read off the traced function, so it is exact up to XLA's rematerialisation.
    """
    state = jax.eval_shape(functools.partial(start_state, program), start.params, hyper)
    words = np.broadcast_to(np.int32(0), (batch, length))
    example = jax.eval_shape(lambda: Batch(words, words == 0, words[:, 0]))

    def kept(base, params, constants, hyper, batch):
        key = jax.random.key(hyper.seed) if program.dropping else None
        return jax.vjp(
            lambda params: logits_of(program, base, params, constants, batch, rate=hyper.dropout, key=key), params
        )[1]

    residuals = size(jax.eval_shape(kept, base, start.params, start.constants, hyper, example)) - size(base)
    return size(state) + 2 * size(start.params) + max(residuals, 0)


def budget() -> int:
    """Bytes that packs may take on this device, beside what is loaded."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(USABLE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(USABLE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def size(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _itemsize(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
