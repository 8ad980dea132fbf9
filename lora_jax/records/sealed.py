"""JSON objects that carry a hash of their content, and lines that carry a checksum. Both are checked when read.

A flipped bit in a record would otherwise be a wrong number that looks right.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

from lora_jax.errors import UserError

SEAL, CHECKSUM = "sha256", "crc32"


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` as JSON's types, with the SHA-256 of their content under the key "sha256"."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != SEAL}, default=_plain))
    return {**plain, SEAL: _sha256(plain)}


def unseal(
    values: Mapping[str, Any], *, where: str, required: bool = True, advice: str = "restore it from a copy"
) -> dict[str, Any]:
    """Returns the content of a sealed object, without its hash.

    Args:
      values: the object, as read from a file.
      where: names the file in an error.
      required: whether an object without a hash is an error.
      advice: the end of the error's message.

    Raises:
      UserError: the hash does not fit the content, or is missing.
    """
    content = {key: value for key, value in values.items() if key != SEAL}
    if SEAL not in values:
        if required:
            raise UserError(f"{where} is damaged: it has no {SEAL}; {advice}")
    elif values[SEAL] != _sha256(content):
        raise UserError(f"{where} is damaged: its content does not fit its {SEAL}; {advice}")
    return content


def seal_line(values: Mapping[str, Any]) -> str:
    """Returns `values` as one line of JSON, with the CRC-32 of their content under the key "crc32"."""
    plain = json.loads(json.dumps(dict(values), default=_plain))
    return json.dumps({**plain, CHECKSUM: _crc32(plain)}) + "\n"


def unseal_line(values: Mapping[str, Any], *, where: str, required: bool) -> dict[str, Any]:
    """Returns the content of a line that `seal_line` wrote. Raises UserError as `unseal` does."""
    content = {key: value for key, value in values.items() if key != CHECKSUM}
    if CHECKSUM not in values and not required:
        return content
    if values.get(CHECKSUM) != _crc32(content):
        raise UserError(f"{where} is damaged: it does not fit its {CHECKSUM}; remove the line to go on without it")
    return content


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(values)).hexdigest()


def _crc32(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(_canonical(values)):08x}"


def _plain(value: Any) -> Any:
    """Returns NumPy's and JAX's scalars as Python's numbers, and anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
