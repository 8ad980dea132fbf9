"""FT-Top-k (Hu et al., arXiv 2106.09685, Table 3): the last k layers train, and the rest is frozen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import Activity, Padded, TopReplacement
from lora_jax.config import RunConfig
from lora_jax.config.methods import TopLayersSettings
from lora_jax.delta import Delta, count
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head, layer_parameters


@dataclasses.dataclass(frozen=True)
class TopLayers(Method):
    """Trains every parameter of the last layers, in float32 at least, and a new head.

    Embeddings and the norm after the last layer are frozen, as in the paper: the 25.19M of its FT-Top2 are two blocks
    of GPT-2 medium.
    """

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if `base` has fewer layers than should train."""
        trained_layers(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Copies the parameters of the last layers, the last layer first, and draws a head.

        Raises:
          UserError: as `validate`.
        """
        active = trained_layers(base, run)
        params: dict[str, Padded] = {}
        constants: dict[str, Padded] = {}
        for path, weight in layer_parameters(base).items():
            top = weight[len(active) - int(active.sum()) :][::-1]
            params[path] = TopReplacement(top.astype(jnp.promote_types(weight.dtype, jnp.float32)))
            constants[path] = Activity(active)  # type: ignore[arg-type]
        params |= init_head(base, run.initial_seed)
        return AdapterInit(params, constants, count(params))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the parameters of the last layers, each with its mask of layers, and the head."""
        return {
            path: TopReplacement(value.value, constants[path].active) if path in constants else value
            for path, value in params.items()
        }

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns 4 per weight, and 2 more per trained weight. The scan over layers computes every layer's gradient."""
        return 4.0 * kernels + 2.0 * count(params)


def trained_layers(base: nnx.Module, run: RunConfig) -> np.ndarray:
    """Returns a mask of the layers that `run` trains, shape ``[layers]``.

    Raises:
      UserError: `base` has fewer layers.
    """
    assert isinstance(run.method, TopLayersSettings)
    layers, top = next(iter(layer_parameters(base).values())).shape[0], run.method.layers
    if top > layers:
        raise UserError(f"method.layers={top}: must be at most {layers}, as many layers as this model has")
    return np.arange(layers) >= layers - top
