"""Text from records, made safe to show: nothing in it is invisible, reorders its line, or commands a terminal."""

import unicodedata
from collections.abc import Mapping
from typing import Any

LONGEST = 120  # characters of a name in a table, a label or a sentence

_KEPT = "\n\t"
_DIRECTIONS = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def visible(value: Any) -> Any:
    """Returns JSON's types with all control characters in texts and keys written as escapes, such as \\u202e.

    These are terminals' escape sequences, marks that change the direction of text, and halves of surrogate pairs.
    """
    if isinstance(value, str):
        return "".join(map(_visible, value))
    if isinstance(value, Mapping):
        return {visible(key): visible(item) for key, item in value.items()}
    return [visible(item) for item in value] if isinstance(value, list | tuple) else value


def short(text: str) -> str:
    """Returns `text`, cut to LONGEST characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _visible(letter: str) -> str:
    if letter in _KEPT:
        return letter
    hidden = letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
    return f"\\u{ord(letter):04x}" if hidden else letter
