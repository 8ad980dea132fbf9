"""The base class of adapters: zero-padding along their own axes, and neutral values."""

import dataclasses
import typing
from typing import Any, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, jaxtyped

from lora_jax.errors import UserError

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

    def continued(self, fresh: Self) -> Self:
        """Returns these constants for a run that goes on from them, and whose own settings make `fresh`."""
        return self

    def fused(self, dtype: DTypeLike) -> Any:
        """Returns an adapter that computes the same in `dtype` with the kernels of `lora_jax.kernels`, or itself."""
        return self

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape that each field must have as the attribute `name` of `module`."""
        raise NotImplementedError(f"{type(self).__name__} has no place in a model")

    def check_site(self, module: Any, name: str, *, path: str) -> None:
        """Raises UserError, with `path`, unless every field has the shape that `shapes_at` gives."""
        for field, expected in self.shapes_at(module, name).items():
            array = getattr(self, field)
            if array is not None and array.shape != expected:
                raise UserError(f"{path}: {field} has the shape {list(array.shape)}; this model needs {list(expected)}")

    def check(self, *, where: str) -> None:
        """Checks values that were read from a file: dtypes, shapes that fit each other, and no NaN or infinity.

        Raises:
          UserError: a value is not what its field declares. The message begins with `where`.
        """
        with jaxtyped("context"):  # binds the names of axes
            for field in self._fields():
                array, declared = getattr(self, field.name), typing.cast(Any, field.type)
                if not isinstance(array, declared):
                    found = f"{array.dtype.name}{list(array.shape)}"
                    raise UserError(f"{where}/{field.name} is {found}; must be {_declared(field)}, as its other fields")
        for field in self._fields():
            array = getattr(self, field.name)
            if array is not None and not np.isfinite(np.asarray(array)).all():
                raise UserError(f"{where}/{field.name} has NaN or infinity; the training diverged, so use another run")

    def _fields(self) -> tuple[dataclasses.Field[Any], ...]:
        return dataclasses.fields(self)  # type: ignore[arg-type]  # `adapter` makes every subclass a dataclass

    def _replace(self, changes: dict[str, Array]) -> Self:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def _declared(field: dataclasses.Field[Any]) -> str:
    """Returns a field's dtype and axes as the class declares them."""
    kinds = [kind for kind in typing.get_args(field.type) or (field.type,) if kind is not type(None)]
    return " or ".join(f"{kind.__name__.partition('[')[0]}[{kind.dim_str}]" for kind in kinds)


def _resize(array: Array, axis: int, size: int) -> Array:
    if array.shape[axis] >= size:
        return array[(..., slice(size), *[slice(None)] * (-1 - axis))]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, widths)
