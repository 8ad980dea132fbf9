"""Reads JSON files that come with a model or an adapter."""

import json
from pathlib import Path
from typing import Any

from lora_jax.errors import UserError

LARGEST = 2**24  # bytes; the index of the largest published checkpoints has nine million


def read_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in `file`.

    Raises:
      UserError: the file cannot be read, is larger than any such file, is not UTF-8, or is not a JSON object.
    """
    return parse_object(read_text(file), where=str(file))


def read_text(file: Path, *, largest: int = LARGEST) -> str:
    """Returns the content of a text file. Raises UserError if it cannot be read, is too large or is not UTF-8."""
    try:
        if (size := file.stat().st_size) > largest:
            raise UserError(f"{file} has {size} bytes; must be at most {largest}")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error


def parse_object(text: str, *, where: str) -> dict[str, Any]:
    """Returns the JSON object in `text`. Raises UserError, with `where`, if it is not one or has a key twice."""
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        values[key] = value
    return values
