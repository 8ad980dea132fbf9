"""A parameter of the base, replaced: a fresh head, a bias of BitFit, every weight of full fine-tuning."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Num

from lora_jax.adapters.padded import Padded, adapter


@adapter
class Replacement(Padded):
    """A value for a parameter, as large as the parameter itself.

    Where `active` is given, only the layers that it marks are replaced. The others keep the base's own value, so
    whatever stands there has no gradient: zeros in `value` and False in `active` are neutral.
    """

    value: Num[Array, "..."]
    active: Bool[Array, "*layers"] | None = None

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the value in place of the parameter `name` of `module`."""
        value = self.value
        if self.active is not None:
            base = getattr(module, name).get_value()
            active = self.active.reshape(self.active.shape + (1,) * (value.ndim - self.active.ndim))
            value = jnp.where(active, value, base.astype(value.dtype))
        setattr(module, name, nnx.Param(value))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Puts the value in place of the parameter: what it replaced is gone, so `sign` makes no difference."""
        self.graft(module, name)


@adapter
class Activity(Padded):
    """What a replacement has beside what trains: which layers it replaces."""

    active: Bool[Array, "*layers"]
