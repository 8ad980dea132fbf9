"""The train step: a pure function for one run. ``pack.py`` maps it over runs. A single run is a pack of one."""

import dataclasses
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.config import RunConfig
from lora_jax.data.batches import Batch
from lora_jax.data.tasks import find_task
from lora_jax.delta import graft
from lora_jax.errors import UserError
from lora_jax.kernels.choice import uses_pallas
from lora_jax.methods import Method, method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.train.objective import OBJECTIVES, CrossEntropyObjective, batch_loss, training_objective
from lora_jax.train.optimizer import Hyper, learning_rate, optimizer

OUTPUT_MASK = "head/mask"  # the path of a constant, an `OutputMask`
Params = dict[str, Any]  # adapters by path; their leaves are trained

# A run has diverged if its loss is not finite, or is above this multiple of its first loss. Its parameters then stay
# as they were before that step.
DIVERGED = 10.0


@dataclasses.dataclass(frozen=True)
class Program:
    """The settings that are compiled in. All runs of a pack share them."""

    method: Method
    objective: str  # a key of OBJECTIVES
    optim: str
    schedule: str
    drops_out: bool
    label_smoothing: float  # of the training loss
    dtype: str  # of activations
    precision: str  # of products of float32, as jax.default_matmul_precision takes it
    unroll: int | bool  # as jax.lax.scan takes it
    remat: str
    attention: str
    kernel: Literal["xla", "pallas"]  # what applies low-rank pairs

    def unrolled(self) -> Self:
        """Returns this program with its layers one after another, and nothing that is computed again."""
        return dataclasses.replace(self, unroll=True, remat="none")


def program_of(run: RunConfig) -> Program:
    """Returns the program of `run`. Runs with the same ``run.program_key()`` have the same program.

    Raises:
      UserError: as `check_objective`, or the run asks for Pallas kernels, which this device or dtype does not have.
    """
    check_objective(run)
    # A CPU unrolls the whole stack of layers, which is faster, but not under `remat`: without a loop, XLA on a CPU
    # recomputes at once what `remat` dropped, so no memory is saved.
    unroll_all = jax.default_backend() == "cpu" and run.model.remat == "none"
    # A CPU computes elements faster in float32, and products faster with operands in bfloat16.
    narrow_products = jax.default_backend() == "cpu" and run.dtype == "bfloat16"
    program = Program(
        method=method_of(run.method),
        objective=find_task(run.task).objective,
        optim=run.optim.name,
        schedule=run.optim.schedule,
        drops_out=run.drops_out,
        label_smoothing=run.label_smoothing,
        dtype="float32" if narrow_products else run.dtype,
        precision="bfloat16" if narrow_products else "default",
        unroll=unroll_all if run.model.unroll == "auto" else run.model.unroll,
        remat=run.model.remat,
        attention=run.model.attention,
        kernel="pallas" if uses_pallas(run.model.kernel, run.dtype) else "xla",
    )
    return program.unrolled() if run.compile.layers == "unrolled" else program


def check_objective(run: RunConfig) -> None:
    """Refuses, before anything is loaded, settings that do not suit the objective of the run's task.

    Raises:
      UserError: the method has an ensemble, and the outputs for the task cannot be averaged; or labels are smoothed,
        and the task has no classes.
    """
    method, objective = method_of(run.method), OBJECTIVES[find_task(run.task).objective]
    if method.ensemble > 1 and not objective.averaged:
        raise UserError(
            f"method.ensemble={method.ensemble}: must be 1 for task={run.task.name}, whose outputs cannot be averaged"
        )
    if run.label_smoothing > 0 and not isinstance(objective, CrossEntropyObjective):
        raise UserError(
            f"label_smoothing={run.label_smoothing:g}: must be 0 for task={run.task.name}, which has no classes"
        )


class RunState(NamedTuple):
    """The arrays of a run that change while it trains."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]  # updates done
    live: Bool[Array, ""]  # False once diverged
    first_loss: Float[Array, ""]  # the divergence threshold is a multiple of it


class StepMetrics(NamedTuple):
    """Metrics of one step of one run. Norms are global L2 norms."""

    loss: Float[Array, ""]
    lr: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping
    update_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    live: Bool[Array, ""]


def init_state(program: Program, params: Params, hyper: Hyper) -> RunState:
    """Returns the state of a run at step 0."""
    opt_state = optimizer(program.optim, hyper, jnp.zeros(())).init(params)
    return RunState(params, opt_state, jnp.int32(0), jnp.bool_(True), jnp.asarray(jnp.inf, hyper.lr.dtype))


def compute_options(program: Program) -> ComputeOptions:
    """Returns the options with which the program calls models."""
    return ComputeOptions(program.dtype, program.unroll, program.remat, program.attention)


def adapt(program: Program, base: nnx.Module, params: Params, constants: Any) -> nnx.Module:
    """Returns `base` with a run's delta grafted into it."""
    mask = {path: value for path, value in constants.items() if path == OUTPUT_MASK}
    delta = program.method.materialise(params, _of_method(constants))
    if program.kernel == "pallas":
        delta = {path: value.fused(program.dtype) for path, value in delta.items()}
    return graft(base, delta | mask)


def _of_method(constants: Any) -> dict[str, Any]:
    return {path: value for path, value in constants.items() if path != OUTPUT_MASK}


def loss_of(
    program: Program, base: nnx.Module, params: Params, constants: Any, hyper: Hyper, batch: Batch, step: Array | int
) -> Float[Array, ""]:
    """Returns the training loss of a run. Dropout depends on `step` and the run's seed alone."""
    key = jax.random.fold_in(jax.random.key(hyper.seed), step) if program.drops_out else None
    model = adapt(program, base, params, constants)
    return batch_loss(
        training_objective(program.objective, program.label_smoothing),
        model,
        batch,
        dropout_rate=hyper.dropout,
        key=key,
        options=compute_options(program),
    )


def outputs_of(program: Program, base: nnx.Module, params: Params, constants: Any, batch: Batch) -> Any:
    """Returns the outputs of the program's objective, ``[batch, ...]`` (see train/objective.py).

    A method with an ensemble has the mean of the outputs with as many dropout masks, always the same ones.
    """
    model, objective = adapt(program, base, params, constants), OBJECTIVES[program.objective]
    options, masks = compute_options(program), program.method.ensemble
    with jax.default_matmul_precision(program.precision):
        if masks == 1:
            return objective.outputs(model, batch, options=options)
        outputs = jax.lax.map(
            lambda key: objective.outputs(model, batch, options=options, key=key),
            jax.random.split(jax.random.key(0), masks),
        )
    return jax.tree.map(lambda leaf: leaf.mean(0), outputs)


def train_step(
    program: Program, base: nnx.Module, state: RunState, constants: Any, hyper: Hyper, batch: Batch
) -> tuple[RunState, StepMetrics]:
    """Updates one run by one batch. A run that has diverged or finished does not change.

    Args:
      program: the settings that are compiled in.
      base: the frozen model.
      state: the run's parameters and optimizer state.
      constants: the constants of the run's adapters.
      hyper: the run's hyperparameters.
      batch: the run's batch.

    Returns:
      The new state, and the metrics of this step.
    """
    with jax.default_matmul_precision(program.precision):
        loss, grads = jax.value_and_grad(
            lambda params: loss_of(program, base, params, constants, hyper, batch, state.step)
        )(state.params)
    multipliers = program.method.learning_rate_multipliers(state.params, _of_method(constants))
    if multipliers is not None:  # what a multiplier of 0 freezes must not count in the norm that clips the others
        grads = jax.tree.map(lambda grad, factor: jnp.where(factor == 0, 0, grad), grads, multipliers)
    lr = learning_rate(hyper, state.step, program.schedule)
    updates, opt_state = optimizer(program.optim, hyper, lr).update(grads, state.opt_state, state.params)
    if multipliers is not None:
        updates = jax.tree.map(jnp.multiply, updates, multipliers)
    params = optax.apply_updates(state.params, updates)

    first_loss = jnp.where(state.step == 0, loss, state.first_loss)
    grad_norm, update_norm, param_norm = map(optax.tree.norm, (grads, updates, params))
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm) & (loss <= DIVERGED * first_loss)
    unfinished = state.step < hyper.steps
    live = state.live & (finite | ~unfinished)
    new = RunState(params, opt_state, state.step + 1, live, first_loss)
    active = live & unfinished
    chosen = jax.tree.map(
        lambda new, old: jnp.where(active, new, old), new._replace(live=live), state._replace(live=live)
    )
    return chosen, StepMetrics(loss, lr, grad_norm, update_norm, param_norm, live)
