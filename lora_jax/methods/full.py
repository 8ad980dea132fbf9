"""Full fine-tuning: the delta replaces every parameter, in float32 at least (master weights)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from lora_jax.adapters import Padded, Replacement
from lora_jax.config import RunConfig
from lora_jax.delta import Delta, count, parameters
from lora_jax.methods.method import AdapterInit, Method, init_head


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Trains every parameter of the base, and a new head."""

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Copies every parameter of `base`, and draws a head."""
        params: dict[str, Padded] = {
            path: Replacement(jnp.array(value, jnp.promote_types(value.dtype, jnp.float32)))
            for path, value in parameters(base).items()
        }
        params |= init_head(base, run.initial_seed)
        return AdapterInit(params, trainable=count(params))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the parameters as they are."""
        return dict(params)

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns 6 per weight, because all weights train."""
        return 6.0 * kernels
