"""Reads the config.json of a checkpoint, or what a GGUF file has in place of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import UserError, shown
from lora_jax.models import FAMILIES
from lora_jax.models.fields import check_fields
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.json_file import read_object
from lora_jax.weights.sources import gguf_in


def read_config(folder: Path, family: str, fixed: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint's config.

    Args:
      folder: the folder of the checkpoint.
      family: a key of `lora_jax.models.FAMILIES`.
      fixed: keys that the file must set to these values or leave out.

    Returns:
      The family's config object, and the whole content of the file.

    Raises:
      UserError: the file is not readable, is of another family, or has a value that the family does not accept.
    """
    file, row = gguf_in(folder) or folder / "config.json", FAMILIES[family]
    values = open_gguf(file).config() if file.suffix == ".gguf" else read_object(file)
    if (kind := values.get("model_type")) != family:
        raise UserError(
            f"{file}: model_type is {shown(kind)}, but model.family={family!r}; families are {', '.join(FAMILIES)}"
        )
    for key, value in fixed.items():
        if values.get(key) not in (None, value):
            raise UserError(f"{file}: {key}={shown(values[key])} is not supported; must be {value!r}")
    fields = dataclasses.fields(row.config)
    optional = {field.name for field in fields if row.defaults and field.default is not dataclasses.MISSING}
    if missing := [field.name for field in fields if field.name not in optional and field.name not in values]:
        raise UserError(f"{file} has no {', '.join(missing)}")
    try:
        return row.config(**check_fields(row.config, values)), values
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
