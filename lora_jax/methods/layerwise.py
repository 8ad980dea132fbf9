"""Fine-tuning with a learning rate per layer (Howard & Ruder, arXiv 1801.06146, section 3.2: discriminative rates).

The multiplier of layer i of L is decay^(L - i), counted from 0, so that of the last layer is decay. Embeddings have
decay^(L + 1); what stands after the layers, and the head, have 1. This is BEiT's and timm's layer decay. A list of
multipliers, one per layer, takes the place of the layers' own. A multiplier of 0 freezes a layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import LearningRateFactor, Replacement
from lora_jax.config import RunConfig
from lora_jax.config.methods import LayerwiseSettings
from lora_jax.delta import Delta, count, parameters
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head, layer_parameters

AFTER_LAYERS = ("backbone/norm/", "backbone/pooler/", "lm_head/")  # other parameters come before the layers


@dataclasses.dataclass(frozen=True)
class Layerwise(Method):
    """Trains every parameter of the base, each layer at its own learning rate, and a new head."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if there is not one multiplier for each layer of `base`."""
        layer_multipliers(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Copies every parameter of `base`, in float32 at least, with its multipliers as constants. Draws a head.

        Raises:
          UserError: as `validate`.
        """
        settings = run.method
        assert isinstance(settings, LayerwiseSettings)
        layers = layer_multipliers(base, run)
        stacked = layer_parameters(base)
        params: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        trainable = 0
        for path, weight in parameters(base).items():
            if path.startswith("head/"):
                continue
            wide = jnp.promote_types(weight.dtype, jnp.float32)
            params[path] = Replacement(jnp.array(weight, wide))
            if path in stacked:
                factor = layers
            elif path.startswith(AFTER_LAYERS):
                factor = np.ones(())
            else:
                factor = np.asarray(settings.embedding_multiplier(len(layers)))
            constants[path] = LearningRateFactor(factor.astype(wide))  # type: ignore[arg-type]
            trainable += int((factor > 0).sum()) * (weight.size // factor.size)
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the parameters as they are."""
        return dict(params)

    def learning_rate_multipliers(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
        """Returns the multiplier of each parameter and layer, and 1 for the head."""

        def broadcast(path: str, value: Any) -> Any:
            factor = constants[path].factor if path in constants else jnp.ones((), value.dtype)
            return factor.reshape(factor.shape + (1,) * (value.ndim - factor.ndim))

        return {
            path: dataclasses.replace(trained, value=broadcast(path, trained.value)) for path, trained in params.items()
        }

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns 6 per weight: the gradients of frozen layers are computed too, and dropped."""
        return 6.0 * kernels


def layer_multipliers(base: nnx.Module, run: RunConfig) -> np.ndarray:
    """Returns the multiplier of each layer, shape ``[layers]``.

    Raises:
      UserError: the setting has another number of multipliers than `base` has layers.
    """
    assert isinstance(run.method, LayerwiseSettings)
    layers = next(iter(layer_parameters(base).values())).shape[0]
    multipliers = run.method.layer_multipliers(layers)
    if len(multipliers) != layers:
        raise UserError(
            f"method.multipliers={list(multipliers)}: must have {layers} numbers, one for each layer of this model"
        )
    return np.asarray(multipliers)
