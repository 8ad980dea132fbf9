"""Parameters of the base that train in full beside an adapter: PEFT's ``bias`` and ``modules_to_save``."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import Activity, Padded, Replacement
from lora_jax.config import LoraSettings
from lora_jax.delta import parameters
from lora_jax.errors import UserError, shown
from lora_jax.methods.method import AdapterInit
from lora_jax.models.quantised import is_quantised
from lora_jax.targets import Placement, Site, select


def init_trained(base: nnx.Module, settings: LoraSettings, placed: Mapping[str, Placement]) -> AdapterInit:
    """Copies the parameters that train in full, in float32 at least, with a mask of layers for each.

    Raises:
      UserError: as `trained_layers`.
    """
    weights = parameters(base)
    params: dict[str, Padded] = {}
    constants: dict[str, Padded] = {}
    trainable = 0
    for path, active in trained_layers(base, settings, placed).items():
        weight = weights[path]
        value = jnp.asarray(weight, jnp.promote_types(weight.dtype, jnp.float32))
        params[path] = Replacement(
            jnp.where(active.reshape(active.shape + (1,) * (value.ndim - active.ndim)), value, 0)
        )
        constants[path] = Activity(active)  # type: ignore[arg-type]
        trainable += int(active.sum()) * (weight.size // active.size)
    return AdapterInit(params, constants, trainable)


def trained_layers(base: nnx.Module, settings: LoraSettings, placed: Mapping[str, Placement]) -> dict[str, np.ndarray]:
    """Returns a mask of the trained layers of each parameter that trains in full, by path.

    Args:
      base: the frozen model; may be abstract.
      settings: `bias` and `train`.
      placed: the sites that are adapted.

    Raises:
      UserError: a setting matches nothing, or what cannot train.
    """
    known = {path: _as_site(path, weight) for path, weight in parameters(base).items() if not path.startswith("head/")}
    trained: dict[str, np.ndarray] = {}
    if settings.bias != "none":
        of_targets = {f"{path}/bias": placement.rank > 0 for path, placement in placed.items()}
        of_all = {path: np.ones(site.layers or 1, bool) for path, site in known.items() if path.endswith("/bias")}
        wanted = of_all if settings.bias == "all" else of_targets
        trained = {path: layers for path, layers in wanted.items() if path in known}
        if not trained:
            raise UserError(f"method.bias={settings.bias}: must be none, because no bias of this model would train")
    if settings.train is not None:
        for path, layers in select(known, settings.train, key="method.train").items():
            if path.rpartition("/")[0] in placed and not path.endswith("/bias"):
                raise UserError(
                    f"method.train={shown(settings.train)}: matches {path}, which targets adapt; leave it out"
                )
            if is_quantised(parameters(base)[path]):
                raise UserError(
                    f"method.train={shown(settings.train)}: {path} is quantised, so it cannot train; leave it out"
                )
            trained[path] = trained.get(path, np.zeros_like(layers)) | layers
    return {path: mask if known[path].layers else mask.reshape(()) for path, mask in trained.items()}


def _as_site(path: str, weight: object) -> Site:
    """Returns a parameter as what target expressions select from, with its layers."""
    shape = weight.shape  # type: ignore[attr-defined]
    return Site(path, shape[-2] if len(shape) > 1 else 1, shape[-1], shape[0] if "/layers/" in path else None)
