"""Packs: many runs over one frozen base, stacked and trained in one program.

The parameters, optimizer state, hyperparameters and constants of runs have a leading axis of runs. The base has none.
Sizes are padded to the largest of the pack. A layer that a run does not adapt has a neutral adapter.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from lora_jax.adapters import OutputMask
from lora_jax.config import RunConfig
from lora_jax.config.point import Point
from lora_jax.data.batches import Batch
from lora_jax.data.pack_batches import PackBatches
from lora_jax.errors import UserError
from lora_jax.methods import AdapterInit
from lora_jax.train.initial import initial_adapters, initial_shapes
from lora_jax.train.optimizer import ELEMENTWISE, Hyper, hyper_of
from lora_jax.train.setup import Setup, common_base, pack_batches
from lora_jax.train.start import start_from
from lora_jax.train.step import (
    OUTPUT_MASK,
    Params,
    Program,
    RunState,
    init_state,
    outputs_of,
    program_of,
    train_step,
)


@dataclasses.dataclass(eq=False)
class Pack:
    """The stacked arrays of runs on the device, and their settings and batches on the host.

    `state`, `constants` and `hyper` are shapes until `initialise` draws them, which is enough to compile programs.
    """

    program: Program
    points: Sequence[Point]
    setups: Sequence[Setup]  # of each run: one base, and tasks that may differ
    base: nnx.Module  # the frozen model, with a head for the task with most outputs
    inits: Sequence[AdapterInit]  # shapes at true sizes; the arrays are in `state`
    steps: Int[np.ndarray, " runs"]  # the length of each run
    batches: PackBatches
    state: RunState
    constants: Any
    hyper: Hyper


def shape_pack(
    setups: Sequence[Setup], points: Sequence[Point], one_length: bool = False, unrolled: bool = False
) -> Pack:
    """Returns the pack of `points` with shapes in place of arrays.

    Args:
      setups: the setup of each run. They share a base.
      points: the runs.
      one_length: whether every batch is padded to the longest length.
      unrolled: whether layers are unrolled and computed once, whatever the settings say.

    Raises:
      UserError: the model does not have a run's targets or ranks.
    """
    runs = [point.config for point in points]
    program, base = program_of(runs[0]), common_base(setups)
    program = program.unrolled() if unrolled else program
    batches = pack_batches(setups, runs, one_length)
    steps = [run.steps_of(count) for run, count in zip(runs, batches.steps_per_epoch, strict=True)]
    keys = [run.shapes_key() for run in runs]
    distinct = dict(zip(keys, zip(setups, runs, strict=True), strict=True))
    shapes = {key: initial_shapes(setup.base.model, run) for key, (setup, run) in distinct.items()}
    inits = [shapes[key] for key in keys]
    hypers = jax.eval_shape(lambda: _hypers(runs, steps))
    state = jax.eval_shape(functools.partial(stack, program), inits, hypers)
    return Pack(program, points, setups, base, inits, np.array(steps), batches, *state)


def initialise(pack: Pack) -> None:
    """Draws the initial arrays of a pack of shapes.

    Raises:
      UserError: an adapter to start from does not fit.
    """
    runs = [point.config for point in pack.points]
    inits = [
        start_from(setup, run, initial_adapters(pack.program, setup.base.model, run, pack.batches, i))
        for i, (setup, run) in enumerate(zip(pack.setups, runs, strict=True))
    ]
    pack.inits = jax.eval_shape(lambda: inits)
    pack.state, pack.constants, pack.hyper = stack(pack.program, inits, _hypers(runs, pack.steps.tolist()))


def make_pack(setups: Sequence[Setup], points: Sequence[Point]) -> Pack:
    """Initialises and stacks the runs of `points`, whose setups share a base.

    Raises:
      UserError: the model does not have a run's targets or ranks, or an adapter to start from does not fit.
    """
    pack = shape_pack(setups, points)
    initialise(pack)
    return pack


def _hypers(runs: Sequence[RunConfig], steps: Sequence[int]) -> list[Hyper]:
    return [hyper_of(run, count) for run, count in zip(runs, steps, strict=True)]


# Without `jit`, every small operation would be compiled separately.
@functools.partial(jax.jit, static_argnums=0)
def stack(program: Program, inits: Sequence[AdapterInit], hypers: Sequence[Hyper]) -> tuple[RunState, Any, Hyper]:
    """Returns (state, constants, hyper) of a pack at step 0, each leaf ``[runs, ...]``.

    Raises:
      UserError: runs need padding, and the optimizer is not element-wise, so padding would change its updates.
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
    state = jax.vmap(functools.partial(init_state, program))(params, hyper)
    return state, constants, hyper


def align(inits: Sequence[AdapterInit]) -> list[AdapterInit]:
    """Pads inits to common shapes, and adds neutral adapters at the paths that an init lacks."""
    inits = _mask_outputs(inits)
    params = _align([init.params for init in inits])
    constants = _align([init.constants for init in inits])
    return [AdapterInit(p, c, init.trainable) for p, c, init in zip(params, constants, inits, strict=True)]


def _mask_outputs(inits: Sequence[AdapterInit]) -> Sequence[AdapterInit]:
    """Adds masks of outputs where the heads of `inits` have different numbers of them."""
    outputs = [init.params["head/bias"].size or 0 if "head/bias" in init.params else 0 for init in inits]
    if len(set(outputs)) < 2:
        return inits
    return [
        dataclasses.replace(init, constants={**init.constants, OUTPUT_MASK: OutputMask(jnp.ones(count, bool))})
        for init, count in zip(inits, outputs, strict=True)
    ]


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
    """Returns the parameters of run `index`, at the paths and true sizes of `init`. The inverse of `stack`."""
    run = {path: jax.tree.map(lambda leaf: leaf[index], params[path]) for path in init}
    return {path: value if value.size is None else value.resize(init[path].size) for path, value in run.items()}


def packed_step(program: Program):
    """Returns the jitted train step of a pack, ``(base, state, constants, hyper, batch) -> (state, metrics)``.

    It donates the state.
    """
    step = functools.partial(train_step, program)
    packed = _one_by_one(step) if _loops_over_runs() else jax.vmap(step, in_axes=(None, 0, 0, 0, 0))
    return jax.jit(packed, donate_argnums=1)


def packed_outputs(program: Program):
    """Returns the jitted scoring function of a pack, ``(base, params, constants, batch) -> outputs``.

    All runs get the same batch. The outputs are those of the objective (see train/objective.py), with a leading axis
    of runs: ``[runs, batch, ...]``.
    """
    if not _loops_over_runs():
        return jax.jit(jax.vmap(functools.partial(outputs_of, program), in_axes=(None, 0, 0, None)))

    def outputs(base: nnx.Module, params: Params, constants: Any, batch: Batch) -> Any:
        return jax.lax.map(lambda run: outputs_of(program, base, run[0], run[1], batch), (params, constants))

    return jax.jit(outputs)


def _loops_over_runs() -> bool:
    # One run's batch keeps the cores of a CPU busy. One run after another, a program takes the temporaries of one run:
    # 0.6 GiB in place of 2.4 for four MiniLM runs of 32 x 64 tokens, which takes 3.7 s a step in place of 6.0, because
    # the system maps and zeroes temporaries anew for every step (results/bench/README.md).
    return jax.default_backend() == "cpu"


def _one_by_one(step):
    """Returns the step of a pack that updates its runs in a loop, in place."""

    def packed(base: nnx.Module, state: RunState, constants: Any, hyper: Hyper, batch: Batch):
        def update(state, inputs):
            index, *others = inputs
            new, metrics = step(base, jax.tree.map(lambda leaf: leaf[index], state), *others)
            return jax.tree.map(lambda leaf, value: leaf.at[index].set(value), state, new), metrics

        return jax.lax.scan(update, state, (jnp.arange(len(state.step)), constants, hyper, batch))

    return packed


def shapes_of_runs(example: Batch, runs: int) -> Batch:
    """Returns the shapes of a batch like `example`, leaves ``[any, batch, ...]``, for another number of runs."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape[1:]), leaf.dtype), example)


@jax.jit
def copied(tree: Any) -> Any:
    """Returns copies of arrays in new buffers, for arrays that must outlive the step, which donates its state."""
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def choose_runs(improved: Bool[Array, " runs"], new: Any, old: Any) -> Any:
    """Returns the new parameters of each run that has improved, and the old ones of the others."""
    return jax.tree.map(lambda new, old: jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old)
