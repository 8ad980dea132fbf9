"""Stacking runs: many deltas over one frozen base, in one program.

Everything that belongs to a run (delta, optimizer state, hyperparameters, constants) has a leading axis of runs; the
base does not. Ranks are zero-padded to the pack's largest, and a site that a run does not adapt is a pair of zeros.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.data.batches import Batch
from lora_jax.errors import UserError
from lora_jax.methods import AdapterInit
from lora_jax.train.optimizer import ELEMENTWISE, Hyper
from lora_jax.train.step import Params, Program, RunState, outputs_of, start_state, train_step


def stack(program: Program, inits: Sequence[AdapterInit], hypers: Sequence[Hyper]) -> tuple[RunState, Any, Hyper]:
    """Returns (state, constants, hyper) of a pack at step 0, each leaf ``[runs, ...]``.

    Raises UserError where runs need padding and the optimizer is not element-wise, since padding would change it.
    """
    if len({str(jax.tree.map(jnp.shape, init.params)) for init in inits}) > 1 and not ELEMENTWISE[program.optim]:
        raise UserError(
            f"optim={program.optim}: normalises over whole arrays, so runs of different rank or targets cannot share "
            f"a program; use pack=1, or one of {', '.join(name for name, ok in ELEMENTWISE.items() if ok)}"
        )
    aligned = align(inits)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(init.params for init in aligned))
    constants = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(init.constants for init in aligned))
    hyper = jax.tree.map(lambda *leaves: jnp.stack(leaves), *hypers)
    state = jax.vmap(functools.partial(start_state, program))(params, hyper)
    return state, constants, hyper


def align(inits: Sequence[AdapterInit]) -> list[AdapterInit]:
    """Returns the same inits with the same shapes: sizes padded, and what a run lacks neutral."""
    params = _align([init.params for init in inits])
    constants = _align([init.constants for init in inits])
    return [AdapterInit(p, c, init.trainable) for p, c, init in zip(params, constants, inits, strict=True)]


def _align(trees: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    examples: dict[str, Any] = {}
    for tree in trees:
        for path, adapter in tree.items():
            example = examples.get(path, adapter)
            examples[path] = _largest(example, adapter).complete(_largest(adapter, example))
    neutral = {path: example.neutral() for path, example in examples.items()}

    def complete(path: str, adapter: Any, example: Any) -> Any:
        padded = adapter if example.size is None else adapter.resize(example.size)
        return padded.complete(example)

    return [
        {
            path: complete(path, tree[path], example) if path in tree else neutral[path]
            for path, example in examples.items()
        }
        for tree in trees
    ]


def _largest(one: Any, other: Any) -> Any:
    return other if (other.size or 0) > (one.size or 0) else one


def unstack_run(params: Params, index: int, init: Params) -> Params:
    """Returns one run's parameters out of a pack's, at the paths and true sizes of its own `init`."""
    run = {path: jax.tree.map(lambda leaf: leaf[index], params[path]) for path in init}
    return {path: value if value.size is None else value.resize(init[path].size) for path, value in run.items()}


def packed_step(program: Program):
    """``(base, state, constants, hyper, batch) -> (state, metrics)`` for a pack; donates the state."""
    step = functools.partial(train_step, program)
    return jax.jit(jax.vmap(step, in_axes=(None, 0, 0, 0, 0)), donate_argnums=1)


def packed_outputs(program: Program):
    """``(base, params, constants, batch) -> outputs [runs, batch, ...]``; all runs see the same batch.

    Of a classifier they are its logits; train/objective.py has the rest.
    """
    return jax.jit(jax.vmap(functools.partial(outputs_of, program), in_axes=(None, 0, 0, None)))


def of_length(example: Batch, length: int, leading: int) -> Batch:
    """The shapes of `example`, its tokens of another length; `leading` axes come before those."""

    def shape(leaf):
        return jax.ShapeDtypeStruct((*leaf.shape[:leading], *[length] * (leaf.ndim - leading)), leaf.dtype)

    return jax.tree.map(shape, example)
