"""BitFit (Ben Zaken et al., arXiv 2106.10199): the biases train, and everything else is frozen.

Both papers train every bias of the model. Here those of linear layers follow `targets`, and those of layer norms train
unless ``method.norms=false`` says otherwise.
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
    """Trains the biases of the targets and of layer norms, and a fresh head. All of its settings are data."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError for targets that `base` does not have, and where none of them has a bias."""
        trained_layers(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Starts every bias at the base's own value, in float32 at least; layers that do not train hold zeros.

        Raises UserError as `validate` does.
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
        head = init_head(base, run.seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the biases, each with the layers that it replaces, and the head."""

        def replace(path: str, bias: Replacement) -> Replacement:
            return Replacement(bias.value, constants[path].active) if path in constants else bias

        return {path: replace(path, bias) for path, bias in params.items()}


def trained_layers(base: nnx.Module, run: RunConfig) -> dict[str, np.ndarray]:
    """Returns which layers of which biases `run` trains: a mask by path, without an axis where layers are not stacked.

    Raises UserError for targets that match nothing, and where nothing that they match has a bias.
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
