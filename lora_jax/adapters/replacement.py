"""Replacement of parameters: a new head, the biases of BitFit, all weights of full fine-tuning."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Num

from lora_jax.adapters.padded import Padded, adapter


@adapter
class Replacement(Padded):
    """A new value for a parameter, of the parameter's shape.

    `active` is a mask of the layers that are replaced; None replaces all. Other layers keep the base's value, so their
    part of `value` has no gradient. Zeros in `value` and False in `active` are neutral.
    """

    value: Num[Array, "..."]
    active: Bool[Array, "*layers"] | None = None

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of the parameter, and of a mask over its leading axes."""
        shape = getattr(module, name).get_value().shape
        return {"value": shape, "active": shape[: 0 if self.active is None else self.active.ndim]}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the value in place of the parameter `name` of `module`."""
        value = self.value
        if self.active is not None:
            base = getattr(module, name).get_value()
            active = self.active.reshape(self.active.shape + (1,) * (value.ndim - self.active.ndim))
            value = jnp.where(active, value, base.astype(value.dtype))
        setattr(module, name, nnx.Param(value))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Puts the value in place of the parameter. This cannot be undone: `sign` makes no difference."""
        self.graft(module, name)


@adapter
class Activity(Padded):
    """The constants of a replacement: a mask of the layers that it replaces."""

    active: Bool[Array, "*layers"]
