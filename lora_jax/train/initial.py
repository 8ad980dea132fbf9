"""The initial adapters of a run, for methods that start from the loss's gradients too."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lora_jax.adapters import Replacement
from lora_jax.config import RunConfig
from lora_jax.data.batches import Batch, StepBatches
from lora_jax.delta import graft, parameters
from lora_jax.methods import AdapterInit, method_of
from lora_jax.methods.method import init_head
from lora_jax.train.objective import batch_loss, training_objective
from lora_jax.train.sharding import put_batch
from lora_jax.train.step import Program, compute_options


def initial_adapters(
    program: Program, base: nnx.Module, run: RunConfig, batches: StepBatches, index: int
) -> AdapterInit:
    """Returns the initial adapters of a run, at their true sizes.

    Args:
      program: the settings that are compiled in.
      base: the frozen model.
      run: the settings.
      batches: the batches of the run's pack.
      index: the run's place in the pack.

    Raises:
      UserError: `base` does not have what the run adapts.
    """
    paths = program.method.gradient_paths(base, run)
    if not paths:
        return program.method.init(base, run)
    count = program.method.gradient_batches(run)
    head: dict[str, Any] = init_head(base, run.initial_seed)
    total: Mapping[str, Array] | None = None
    for step in range(count):
        batch = put_batch(jax.tree.map(lambda leaf: leaf[index], batches[step]))
        gradients = _gradients(program, paths, base, head, batch)
        total = gradients if total is None else jax.tree.map(jnp.add, total, gradients)
    return program.method.init_from_gradients(base, run, jax.tree.map(lambda leaf: leaf / count, total))


def initial_shapes(base: nnx.Module, run: RunConfig) -> AdapterInit:
    """Returns the shapes of the initial adapters of `run`, at true sizes. `base` may be abstract."""

    def init(base: nnx.Module) -> AdapterInit:
        method, weights = method_of(run.method), parameters(base)
        gradients = {path: jnp.zeros(weights[path].shape) for path in method.gradient_paths(base, run)}
        return method.init_from_gradients(base, run, gradients)

    return jax.eval_shape(init, base)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(
    program: Program, paths: tuple[str, ...], base: nnx.Module, head: Mapping[str, Any], batch: Batch
) -> dict[str, Array]:
    """Returns the gradients of a batch's training loss in the weights at `paths`, without dropout."""
    weights, objective = parameters(base), training_objective(program.objective, program.label_smoothing)

    def loss(kernels: dict[str, Array]) -> Array:
        model = graft(base, {**head, **{path: Replacement(kernel) for path, kernel in kernels.items()}})
        return batch_loss(objective, model, batch, options=compute_options(program))

    return jax.grad(loss)({path: weights[path].astype(jnp.zeros(()).dtype) for path in paths})
