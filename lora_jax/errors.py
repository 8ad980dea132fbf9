"""Errors of the user and of the machine, as opposed to errors of the program."""

import errno
import os
import re
import reprlib
from collections.abc import Iterator
from typing import Any

_IN_URL = re.compile(r"(?<=://)[^/\s'\"@]+(?=@)")
_TOKEN = re.compile(r"\b(hf_\w{20,}|AKIA[A-Z0-9]{16}|wandb_v1_\w{20,})")
_SECRET_NAME = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD)(_|$)")
_SHORTEST_SECRET = 8
_LONGEST_LINE = 900  # characters


class UserError(ValueError):
    """The input cannot be used. The message names the key, its value, and what would be accepted, without secrets.

    Long lines are shortened, because the keys of a damaged file can be of any length.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(_shortened(line, _LONGEST_LINE) for line in redact(message).split("\n")))


def redact(text: str) -> str:
    """Returns `text` with asterisks for secrets.

    These are users and passwords in URLs, tokens of Hugging Face, W&B and AWS by their form, and the values of
    environment variables that are named KEY, TOKEN, SECRET or PASSWORD.
    """
    text = _TOKEN.sub("***", _IN_URL.sub("***", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name.upper()):
            text = text.replace(value, "***")
    return text


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# TensorStore, which writes checkpoints, reports a full disk in the text of another error.
_DISK_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "os error 28", "OS error 28")


def is_disk_full(error: BaseException) -> bool:
    """Returns whether `error`, or an error that it followed from, reports a full disk."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _DISK_FULL)
        or any(text in str(cause) for text in _DISK_FULL_TEXTS)
        for cause in _chain(error)
    )


def is_interrupt(error: BaseException) -> bool:
    """Returns whether `error` is an interrupt, or was raised while an interrupt ended what it was raised in."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 32


def shown(value: Any) -> str:
    """Returns a value as Python writes it, for a message: what is long or deep is shortened."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "..."


def message_of(error: BaseException) -> str:
    """Returns what a library's exception says, on one line and shortened, because it may quote a whole file."""
    return _shortened(" ".join(str(error).split()), 300)


def _shortened(text: str, longest: int) -> str:
    """Returns `text` without its middle where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - len(' ... ')]} ... {text[-end:]}"
