"""BitFit (Ben Zaken et al., arXiv 2106.10199): only biases train.

BitFit's and LoRA's papers train every bias of the model. Here `targets` selects the linear layers whose biases train.
The biases of layer norms train too, unless ``method.norms=false``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import Activity, Padded, Replacement
from lora_jax.config import RunConfig
from lora_jax.config.methods import BitFitSettings
from lora_jax.delta import Delta, count, parameters
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head
from lora_jax.targets import select, sites


@dataclasses.dataclass(frozen=True)
class BitFit(Method):
    """Trains the biases of the targets and of layer norms, and a new head. All of its settings are data."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if `base` lacks a target, or if no target has a bias."""
        trained_layers(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Copies the base's biases, in float32 at least, with zeros in layers that do not train. Draws a head.

        Raises:
          UserError: as `validate`.
        """
        weights = parameters(base)
        params: dict[str, Padded] = {}
        constants: dict[str, Padded] = {}
        trainable = 0
        for path, active in trained_layers(base, run).items():
            bias = weights[path]
            value = jnp.asarray(bias, jnp.promote_types(bias.dtype, jnp.float32))
            params[path] = Replacement(jnp.where(active[..., None], value, 0))
            constants[path] = Activity(active)  # type: ignore[arg-type]
            trainable += int(active.sum()) * bias.shape[-1]
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the biases, each with its mask of layers, and the head."""

        def replace(path: str, bias: Replacement) -> Replacement:
            return Replacement(bias.value, constants[path].active) if path in constants else bias

        return {path: replace(path, bias) for path, bias in params.items()}


def trained_layers(base: nnx.Module, run: RunConfig) -> dict[str, np.ndarray]:
    """Returns a mask of the trained layers of each trained bias, by path. The mask of an unstacked bias has no axis.

    Raises:
      UserError: a target matches nothing, or no target has a bias.
    """
    assert isinstance(run.method, BitFitSettings)
    weights, known = parameters(base), sites(base)
    selected = {f"{path}/bias": layers for path, layers in select(known, run.targets).items()}
    trained = {path: layers for path, layers in selected.items() if path in weights}
    if not trained:
        raise UserError(f"targets={run.targets!r}: none of them has a bias to train in this model; use method=lora")
    if run.method.norms:
        norms = [path for path in weights if path.endswith("/bias") and f"{path.removesuffix('bias')}scale" in weights]
        trained |= {path: np.ones(weights[path].shape[0], bool) for path in norms if not path.startswith("head/")}
    return {path: layers if weights[path].ndim > 1 else layers[:1].reshape(()) for path, layers in trained.items()}
