"""Stacking runs: many deltas over one frozen base, in one program.

Everything that belongs to a run (delta, optimizer state, hyperparameters, constants) has a leading axis of runs; the
base does not. Ranks are zero-padded to the pack's largest, and a site that a run does not adapt is a pair of zeros.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lora_jax.data.batches import Batch
from lora_jax.delta import Delta, ranks, resize
from lora_jax.errors import UserError
from lora_jax.methods import Start
from lora_jax.train.optimizer import ELEMENTWISE, Hyper
from lora_jax.train.step import Program, RunState, outputs_of, start_state, train_step


def stack(program: Program, starts: Sequence[Start], hypers: Sequence[Hyper]) -> tuple[RunState, Any, Hyper]:
    """(state, constants, hyper) of a pack, each leaf ``[runs, ...]``.

    Raises UserError where runs need padding and the optimizer is not element-wise, since padding would change it.
    """
    if len({str(jax.tree.map(jnp.shape, start.params)) for start in starts}) > 1 and not ELEMENTWISE[program.optim]:
        raise UserError(
            f"optim={program.optim}: normalises over whole arrays, so runs of different rank or targets cannot share "
            f"a program; use pack=1, or one of {', '.join(name for name, ok in ELEMENTWISE.items() if ok)}"
        )
    starts = align(starts)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start.params for start in starts))
    constants = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start.constants for start in starts))
    hyper = jax.tree.map(lambda *leaves: jnp.stack(leaves), *hypers)
    state = jax.vmap(functools.partial(start_state, program))(params, hyper)
    return state, constants, hyper


def align(starts: Sequence[Start]) -> list[Start]:
    """The same starts with the same shapes: ranks padded, sites that a run lacks filled with zeros."""
    widest: dict[str, int] = {}
    example: dict[str, Any] = {}
    scales: dict[str, Array] = {}
    for start in starts:
        for path, rank in ranks(start.params).items():
            widest[path] = max(rank, widest.get(path, 0))
        example |= start.params
        scales |= start.constants.get("scale", {})

    dropping = any("dropout" in start.constants for start in starts)

    def whole(start: Start) -> Start:
        absent = {
            path: jax.tree.map(jnp.zeros_like, value) for path, value in example.items() if path not in start.params
        }
        constants = dict(start.constants)
        if scales:
            constants["scale"] = {path: constants["scale"].get(path, jnp.zeros_like(s)) for path, s in scales.items()}
        if dropping:
            constants.setdefault("dropout", jnp.zeros((), jnp.float32))
        return Start(resize(start.params | absent, widest), constants)

    return [whole(start) for start in starts]


def member(params: Delta, index: int, start: Delta) -> Delta:
    """One run's delta out of a pack's, at the shapes of its own `start`: true ranks, own sites."""
    own = {path: jax.tree.map(lambda leaf: leaf[index], params[path]) for path in start}
    return resize(own, ranks(start))


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
