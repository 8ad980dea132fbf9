"""How many bytes arrays, compiled programs and runs take, and how many are free."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.data.batches import Batch
from lora_jax.methods import AdapterInit
from lora_jax.train.optimizer import Hyper
from lora_jax.train.step import Program, RunState, loss_of, start_state

USABLE = 0.9  # of what is free: the rest is for what an allocator cannot piece together


def size(tree: Any) -> int:
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def budget() -> int:
    """Returns the bytes that packs may take on this device, beside what is loaded."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(USABLE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(USABLE * _free_on_host())


def peak_bytes(compiled: Any) -> int:
    """Returns the bytes that XLA planned for a compiled program: its arguments, results and temporaries."""
    plan = compiled.memory_analysis()
    return int(plan.argument_size_in_bytes) + added_bytes(compiled)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether `error` says that the device, or a plan for it, has too little memory for a pack."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def added_bytes(compiled: Any) -> int:
    """Returns the bytes that a compiled program takes beside its arguments."""
    plan = compiled.memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes)


def pack_bytes(compiled: Any, state: RunState, *others: Any) -> int:
    """Returns the bytes beside the base that a pack's compiled step takes: XLA's own plan, and the best parameters.

    `state` and `others` are its arguments but for the base, of which XLA leaves out what a step does not read.
    """
    return size((state, others)) + size(state.params) + added_bytes(compiled)


def state_bytes(program: Program, init: AdapterInit, hyper: Hyper) -> int:
    """Returns the bytes that a run takes for its parameters' sake, which its rank changes: its state and a gradient."""
    state = jax.eval_shape(functools.partial(start_state, program), init.params, hyper)
    return size(state) + 2 * size(init.params)


def run_bytes(program: Program, base: nnx.Module, init: AdapterInit, hyper: Hyper, example: Batch) -> int:
    """Returns the bytes that one more run must take: its state, gradient and update, and its backward pass's inputs.

    Those inputs are read off the traced function, so XLA's own temporaries are not in it. `example` is one run's batch;
    all arguments may be shapes.
    """

    def residuals(base: Any, params: Any, constants: Any, hyper: Any, batch: Any) -> Any:
        return jax.vjp(lambda params: loss_of(program, base, params, constants, hyper, batch, 0), params)[1]

    kept = jax.eval_shape(residuals, base, init.params, init.constants, hyper, example)
    return state_bytes(program, init, hyper) + max(size(kept) - size(base), 0)


def _free_on_host() -> int:
    """What could be allocated without swapping; Linux counts the page cache that it can drop."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        lines = dict(line.split(":") for line in facts.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _itemsize(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
