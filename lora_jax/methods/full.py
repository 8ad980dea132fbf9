"""Full fine-tuning: the delta replaces every parameter, in float32 at least (master weights)."""

import jax.numpy as jnp
from flax import nnx

from lora_jax.config import RunConfig
from lora_jax.delta import Delta, parameters
from lora_jax.methods.start import Start, head


def check(base: nnx.Module, run: RunConfig) -> None:
    """Full fine-tuning fits every base."""


def start(base: nnx.Module, run: RunConfig) -> Start:
    """Every parameter of `base`, copied, and a fresh head."""
    own = {
        path: jnp.array(value, jnp.promote_types(value.dtype, jnp.float32)) for path, value in parameters(base).items()
    }
    return Start(own | head(base, run.seed), {})


def materialise(params: Delta, constants: dict) -> Delta:
    return params
