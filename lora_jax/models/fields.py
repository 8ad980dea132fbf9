"""The types of values in ``config.json`` and other files of a checkpoint, and the check of values against them.

A dataclass declares its fields with these types. Values that come from a file are checked before the dataclass is made.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import pydantic
from pydantic import Field

from lora_jax.errors import shown

LARGEST_SIZE = 2**24  # of a width, a vocabulary, a context

Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Layers = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=0, le=LARGEST_SIZE)]
SizeOrNegative = Annotated[int, Field(ge=-1, le=LARGEST_SIZE)]  # -1 stands for a default
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


def check_fields(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of those fields of a dataclass that `values` has. Nothing is converted.

    Raises:
      ValueError: a value does not have its field's type. The message says what would be accepted.
    """
    present = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
    for name, value in present.items():
        try:
            _adapters(kind)[name].validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            accepted = dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors()[:4])
            raise ValueError(f"{name}={shown(value)}: must be {' or '.join(accepted)}") from None
    return present


@functools.cache
def _adapters(kind: Any) -> dict[str, pydantic.TypeAdapter[Any]]:
    return {name: pydantic.TypeAdapter(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
