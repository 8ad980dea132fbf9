"""Prints a user's error as one line on standard error, with exit status 2."""

import contextlib
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches

from lora_jax.errors import UserError

_NO_GROUP_VALUE = re.compile(
    r"Could not find '(?P<group>.+)/(?P<value>[^/]+)'\s+Available options in '[^']*':\s+(?P<options>(?:\t[^\n]+\n?)+)"
)
_NO_KEY = re.compile(r"Key '(?P<key>[^']+)' is not in struct\s+full_key: (?P<path>\S+)", re.S)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process on a UserError: prints its message without a traceback, with exit status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def explain_hydra(error: Exception, settings: list[str]) -> str:
    """Returns an error of Hydra as one line.

    Args:
      error: the error.
      settings: all keys of the composed settings, such as ``task.buckets``.
    """
    from hydra.errors import OverrideParseException

    text = "\n".join(str(part) for part in (error, error.__cause__) if part is not None)
    if match := _NO_GROUP_VALUE.search(text):
        options = ", ".join(match["options"].split())
        return f"{match['group']}={match['value']}: must be one of {options}"
    if match := _NO_KEY.search(text):
        path = match["path"]
        siblings = [key for key in settings if key.rpartition(".")[0] == path.rpartition(".")[0]]
        close = get_close_matches(path, settings, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{path}: no such setting{hint or '.'} There are {', '.join(siblings)}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: is not an override that Hydra can read: {' '.join(str(error).splitlines()[0].split())}"
        )
    return " ".join(text.split())
