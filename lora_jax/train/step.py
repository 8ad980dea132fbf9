"""The one train step: pure, for one run. ``pack.py`` maps it over runs; a single run is a pack of one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.config import RunConfig
from lora_jax.data.batches import Batch
from lora_jax.data.tasks import find_task
from lora_jax.delta import graft
from lora_jax.methods import Method, method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.optimizer import Hyper, learning_rate, optimizer

Params = dict[str, Any]  # adapters by path, whose leaves train

# A run whose loss is not finite, or above this many times its first loss, has diverged: it stops where it was.
DIVERGED = 10.0


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled in: the settings that the runs of a pack have in common."""

    method: Method
    objective: str  # the task's
    optim: str
    schedule: str
    drops_out: bool
    dtype: str
    unroll: int | bool  # as jax.lax.scan takes it
    remat: str
    attention: str


def program_of(run: RunConfig) -> Program:
    """The program that `run` is trained by, with every other run of the same ``run.shape()``."""
    # Without a loop, XLA on a CPU computes again right away what `remat` left out, and nothing is saved.
    whole_stack = jax.default_backend() == "cpu" and run.model.remat == "none"
    return Program(
        method=method_of(run.method),
        objective=find_task(run.task.name).objective,
        optim=run.optim.name,
        schedule=run.optim.schedule,
        drops_out=run.drops_out,
        dtype=run.dtype,
        unroll=whole_stack if run.model.unroll == "auto" else run.model.unroll,
        remat=run.model.remat,
        attention=run.model.attention,
    )


class RunState(NamedTuple):
    """All that changes while a run trains."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]  # updates done
    live: Bool[Array, ""]  # False once diverged
    first_loss: Float[Array, ""]


class StepMetrics(NamedTuple):
    loss: Float[Array, ""]
    lr: Float[Array, ""]
    grad_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    live: Bool[Array, ""]


def start_state(program: Program, params: Params, hyper: Hyper) -> RunState:
    opt_state = optimizer(program.optim, hyper, jnp.zeros(())).init(params)
    return RunState(params, opt_state, jnp.int32(0), jnp.bool_(True), jnp.asarray(jnp.inf, hyper.lr.dtype))


def compute_options(program: Program) -> ComputeOptions:
    """Returns the options with which the program calls models."""
    return ComputeOptions(program.dtype, program.unroll, program.remat, program.attention)


def adapted(program: Program, base: nnx.Module, params: Params, constants: Any) -> nnx.Module:
    """`base` with a run's delta grafted into it."""
    return graft(base, program.method.materialise(params, constants))


def loss_of(
    program: Program, base: nnx.Module, params: Params, constants: Any, hyper: Hyper, batch: Batch, step: Array | int
) -> Float[Array, ""]:
    """What a run minimises, at its `step`: dropout depends on that and on the run's seed alone."""
    key = jax.random.fold_in(jax.random.key(hyper.seed), step) if program.drops_out else None
    model = adapted(program, base, params, constants)
    return OBJECTIVES[program.objective].loss(
        model, batch, dropout_rate=hyper.dropout, key=key, options=compute_options(program)
    )


def outputs_of(program: Program, base: nnx.Module, params: Params, constants: Any, batch: Batch) -> Any:
    """Computes what scoring keeps of each example, ``[batch, ...]``: see train/objective.py."""
    model = adapted(program, base, params, constants)
    return OBJECTIVES[program.objective].outputs(model, batch, options=compute_options(program))


def train_step(
    program: Program, base: nnx.Module, state: RunState, constants: Any, hyper: Hyper, batch: Batch
) -> tuple[RunState, StepMetrics]:
    """One update of the delta. The base is read, never written; a diverged or finished run stays as it is."""

    loss, grads = jax.value_and_grad(
        lambda params: loss_of(program, base, params, constants, hyper, batch, state.step)
    )(state.params)
    rate = learning_rate(hyper, state.step, program.schedule)
    updates, opt_state = optimizer(program.optim, hyper, rate).update(grads, state.opt_state, state.params)
    multipliers = program.method.learning_rate_multipliers(state.params, constants)
    if multipliers is not None:
        updates = jax.tree.map(jnp.multiply, updates, multipliers)
    params = optax.apply_updates(state.params, updates)

    first_loss = jnp.where(state.step == 0, loss, state.first_loss)
    grad_norm = optax.tree.norm(grads)
    sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (loss <= DIVERGED * first_loss)
    live = state.live & (sound | (state.step >= hyper.steps))
    new = RunState(params, opt_state, state.step + 1, live, first_loss)
    moving = live & (state.step < hyper.steps)
    kept = jax.tree.map(
        lambda new, old: jnp.where(moving, new, old), new._replace(live=live), state._replace(live=live)
    )
    norms = (grad_norm, optax.tree.norm(updates), optax.tree.norm(params))
    return kept, StepMetrics(loss, rate, *norms, live)
