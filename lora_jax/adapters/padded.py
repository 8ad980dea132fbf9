"""The base class of adapters: zero-padding along their own axes, and neutral values."""

import dataclasses
from typing import Any, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array

T = TypeVar("T", bound="Padded")


def padded_axis(axis: int, **options: Any) -> Any:
    """Declares a field whose `axis`, counted from the end, is as long as the adapter's `size`."""
    return dataclasses.field(metadata={"padded_axis": axis}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, padded_axis))
def adapter(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a JAX pytree of its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


class Padded:
    """A dataclass of arrays, some of which have an axis of the adapter's own size: a rank, a bottleneck's width.

    Runs of different sizes share a program: that axis is padded with zeros. A kind for which zeros change outputs or
    gradients overrides `resize` and `neutral`.
    """

    @property
    def size(self) -> int | None:
        """The length of the padded axes, or None for a kind without such axes."""
        for field in self._fields():
            array = getattr(self, field.name)
            if "padded_axis" in field.metadata and array is not None:
                return int(array.shape[field.metadata["padded_axis"]])
        return None

    def resize(self, size: int) -> Self:
        """Returns a copy with every padded axis zero-padded, or cut, to `size`."""
        axes = {
            field.name: field.metadata["padded_axis"] for field in self._fields() if "padded_axis" in field.metadata
        }
        arrays = {name: array for name in axes if (array := getattr(self, name)) is not None}
        return self._replace({name: _resize(array, axes[name], size) for name, array in arrays.items()})

    def neutral(self) -> Self:
        """Returns an adapter of these shapes for a run without one: it has no effect and no gradient."""
        neutral: Self = jax.tree.map(jnp.zeros_like, self)
        return neutral

    def complete(self, example: Self) -> Self:
        """Returns a copy with all optional fields that `example` has. New fields are zeros."""
        missing = [field.name for field in self._fields() if getattr(self, field.name) is None]
        examples = {name: array for name in missing if (array := getattr(example, name)) is not None}
        return self._replace({name: jnp.zeros_like(array) for name, array in examples.items()})

    def _fields(self) -> tuple[dataclasses.Field[Any], ...]:
        return dataclasses.fields(self)  # type: ignore[arg-type]  # `adapter` makes every subclass a dataclass

    def _replace(self, changes: dict[str, Array]) -> Self:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def _resize(array: Array, axis: int, size: int) -> Array:
    if array.shape[axis] >= size:
        return array[(..., slice(size), *[slice(None)] * (-1 - axis))]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, widths)
