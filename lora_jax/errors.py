"""The exception for errors of the user, as opposed to errors of the program."""

import reprlib
from typing import Any


class UserError(ValueError):
    """The input cannot be used. The message names the key, its value, and what would be accepted."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 32


def shown(value: Any) -> str:
    """Returns a value as Python writes it, for a message: what is long or deep is shortened."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "..."
