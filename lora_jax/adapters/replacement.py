"""Replacement of parameters: a new head, the biases of BitFit, the top layers, all weights of full fine-tuning."""

from typing import Any, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Num

from lora_jax.adapters.padded import Padded, adapter, padded_axis


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
class OutputReplacement(Padded):
    """A new value for a parameter of a head, whose last axis is that of the outputs.

    Runs whose tasks have different numbers of labels share a pack: the outputs of the others are padded with zeros, and
    an `OutputMask` hides what the padding computes.
    """

    value: Num[Array, "... outputs"] = padded_axis(-1)

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of the parameter."""
        return {"value": getattr(module, name).get_value().shape}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the value in place of the parameter `name` of `module`."""
        setattr(module, name, nnx.Param(self.value))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Puts the value in place of the parameter. This cannot be undone: `sign` makes no difference."""
        self.graft(module, name)


@adapter
class OutputMask(Padded):
    """The outputs of a head that the run's task has. The logits of the others are minus infinity."""

    active: Bool[Array, " outputs"] = padded_axis(-1)

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of the head's bias."""
        return {"active": module.bias.get_value().shape}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the mask into the slot `name` of a head."""
        setattr(module, name, nnx.data(self.active))


@adapter
class TopReplacement(Padded):
    """New values of a parameter in the last layers of a stack, the last layer first.

    In that order more layers can be added at the end, as padding. `active` is a mask of all layers of the stack; None
    replaces as many as `value` has. Other layers keep the base's value, so their part of `value` has no gradient, and
    False everywhere is neutral.
    """

    value: Num[Array, "top ..."]
    active: Bool[Array, " layers"] | None = None

    @property
    def size(self) -> int:
        """The number of layers that have a new value, or padding in its place."""
        return int(self.value.shape[0])

    def resize(self, size: int) -> Self:
        """Returns a copy padded with zeros, or cut, to `size` layers."""
        missing = max(0, size - self.size)
        padded = jnp.pad(self.value[:size], [(0, missing), *[(0, 0)] * (self.value.ndim - 1)])
        return self._replace({"value": padded})

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of as many layers of the parameter, and of a mask over all of them."""
        layers, *shape = getattr(module, name).get_value().shape
        return {"value": (self.size, *shape), "active": (layers,)}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the value in place of the last layers of the parameter `name` of `module`."""
        base = getattr(module, name).get_value().astype(self.value.dtype)
        first = len(base) - self.size
        value = self.value[::-1]
        if self.active is not None:
            value = jnp.where(self.active[first:].reshape(-1, *[1] * (base.ndim - 1)), value, base[first:])
        setattr(module, name, nnx.Param(base.at[first:].set(value)))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Puts the value in place of the parameter. This cannot be undone: `sign` makes no difference."""
        self.graft(module, name)


@adapter
class Activity(Padded):
    """The constants of a replacement: a mask of the layers that it replaces."""

    active: Bool[Array, "*layers"]
