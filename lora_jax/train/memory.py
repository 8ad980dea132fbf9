"""Bytes that arrays, compiled programs and runs take, and bytes that are free."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.data.batches import Batch
from lora_jax.errors import is_disk_full
from lora_jax.methods import AdapterInit
from lora_jax.train.optimizer import Hyper
from lora_jax.train.step import Program, RunState, init_state, loss_of

USABLE = 0.9  # share of the free bytes; the rest allows for an allocator's fragmentation


def size(tree: Any) -> int:
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def budget() -> int:
    """Returns the bytes that packs may take on this device, in addition to the arrays on it."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(USABLE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(USABLE * _free_on_host())


def peak_bytes(compiled: Any) -> int:
    """Returns the bytes that XLA plans for a compiled program: its arguments, results and temporaries."""
    plan = compiled.memory_analysis()
    return int(plan.argument_size_in_bytes) + added_bytes(compiled)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether `error` reports too little memory, on the device or in a plan for it.

    A full disk, which orbax also reports as RESOURCE_EXHAUSTED, is no lack of memory.
    """
    return (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)) and not is_disk_full(error)


def added_bytes(compiled: Any) -> int:
    """Returns the bytes that a compiled program takes in addition to its arguments."""
    plan = compiled.memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes)


def pack_bytes(compiled: Any, state: RunState, *others: Any) -> int:
    """Returns the bytes that a pack takes in addition to the base: XLA's plan for its step, and the best parameters.

    Args:
      compiled: the compiled train step.
      state: the state of the pack, arrays or shapes.
      others: the other arguments of the step except the base. They are counted here and not taken from XLA's plan,
        because XLA leaves out arguments that a step does not read.
    """
    return size((state, others)) + size(state.params) + added_bytes(compiled)


def state_bytes(program: Program, init: AdapterInit, hyper: Hyper) -> int:
    """Returns the bytes of a run that grow with its parameters: its state, a gradient and an update."""
    state = jax.eval_shape(functools.partial(init_state, program), init.params, hyper)
    return size(state) + 2 * size(init.params)


def run_bytes(program: Program, base: nnx.Module, init: AdapterInit, hyper: Hyper, example: Batch) -> int:
    """Returns the least bytes of one more run: its state, gradient, update, and the residuals of its backward pass.

    The residuals are those of the traced function, so XLA's temporaries are not counted. All arguments may be shapes.

    Args:
      program: the settings that are compiled in.
      base: the frozen model.
      init: the parameters and constants of one run.
      hyper: the hyperparameters of one run.
      example: the batch of one run.
    """

    def residuals(base: Any, params: Any, constants: Any, hyper: Any, batch: Any) -> Any:
        return jax.vjp(lambda params: loss_of(program, base, params, constants, hyper, batch, 0), params)[1]

    shapes = jax.eval_shape(residuals, base, init.params, init.constants, hyper, example)
    return state_bytes(program, init, hyper) + max(size(shapes) - size(base), 0)


def _free_on_host() -> int:
    """Returns the bytes that can be allocated without swapping. On Linux they include the page cache."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _itemsize(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
