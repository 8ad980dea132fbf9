"""Optimizers and schedules with traced hyperparameters, so that runs with different values share one compiled step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lora_jax.config import RunConfig

# Whether an optimizer updates each element independently. Adafactor does not: its statistics are means over whole
# rows and columns, so zero-padding would change them.
ELEMENTWISE = {"adamw": True, "sgd": True, "lion": True, "adafactor": False}
UNDECAYED = ("bias", "scale")  # names of parameters without weight decay


class Hyper(NamedTuple):
    """Hyperparameters of one run, as arrays. In a pack each has a leading axis of runs."""

    lr: Float[Array, ""]
    b1: Float[Array, ""]
    b2: Float[Array, ""]
    eps: Float[Array, ""]
    weight_decay: Float[Array, ""]
    clip_norm: Float[Array, ""]
    warmup: Int[Array, ""]  # steps
    steps: Int[Array, ""]
    dropout: Float[Array, ""]
    seed: Int[Array, ""]


def hyper_of(run: RunConfig, steps: int) -> Hyper:
    """Returns the hyperparameters of `run`, on the host. `steps` is the length of the run."""
    optim, dtype = run.optim, jnp.zeros(()).dtype

    def real(value: float) -> Any:
        return np.asarray(value, dtype)

    def whole(value: int) -> Any:
        return np.asarray(value, np.int32)

    return Hyper(
        lr=real(run.lr),
        b1=real(optim.b1),
        b2=real(optim.b2),
        eps=real(optim.eps),
        weight_decay=real(optim.weight_decay),
        clip_norm=real(optim.clip_norm),
        warmup=whole(round(optim.warmup * steps)),
        steps=whole(steps),
        dropout=real(run.dropout),
        seed=whole(run.seed),
    )


def learning_rate(hyper: Hyper, step: Int[Array, ""], schedule: str) -> Float[Array, ""]:
    """Returns the learning rate of the update that follows `step` updates.

    It rises linearly over the warmup, then falls to zero by `schedule`, or stays constant. The values are those of
    transformers' get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup. Optax's schedules take the
    number of steps as a Python int, which would be compiled in.
    """
    up = step / jnp.maximum(hyper.warmup, 1)
    done = jnp.clip((step - hyper.warmup) / jnp.maximum(hyper.steps - hyper.warmup, 1), 0.0, 1.0)
    down = {"linear": 1 - done, "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)), "constant": jnp.ones_like(done)}
    return (hyper.lr * jnp.where(step < hyper.warmup, up, down[schedule])).astype(hyper.lr.dtype)


def optimizer(name: str, hyper: Hyper, learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
    """Returns the optimizer `name` with clipping by global norm and decoupled weight decay.

    Biases and the scales of norms are not decayed. The optimizer's state covers the trained parameters alone, never
    the base.
    """
    scale_by = {
        "adamw": lambda: optax.scale_by_adam(hyper.b1, hyper.b2, hyper.eps),
        "sgd": lambda: optax.trace(hyper.b1),
        "lion": lambda: optax.scale_by_lion(hyper.b1, hyper.b2),
        "adafactor": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    }
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip_norm),
        scale_by[name](),
        optax.add_decayed_weights(hyper.weight_decay, mask=decayed),
        optax.scale(-learning_rate),
    )


def decayed(params) -> dict:
    """Returns a mask of the parameters that weight decay applies to."""

    def by_name(path, _):
        return str(path[0].key).rpartition("/")[2] not in UNDECAYED

    return jax.tree_util.tree_map_with_path(by_name, params)
