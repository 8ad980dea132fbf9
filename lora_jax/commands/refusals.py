"""Prints errors of the user and the machine as one line on standard error, with exit status 2."""

import contextlib
import errno
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from lora_jax.errors import UserError, is_disk_full, is_interrupt

_NO_GROUP_VALUE = re.compile(
    r"Could not find '(?P<group>.+)/(?P<value>[^/]+)'\s+Available options in '[^']*':\s+(?P<options>(?:\t[^\n]+\n?)+)"
)
_NO_KEY = re.compile(r"Key '(?P<key>[^']+)' is not in struct\s+full_key: (?P<path>\S+)", re.S)


@contextlib.contextmanager
def exit_on_error(folder: Path | None = None) -> Iterator[None]:
    """Ends the process on a UserError, a full disk, or a file that cannot be read or written.

    It prints one line without a traceback, with exit status 2. Other errors are errors of the program.

    Args:
      folder: the folder of the command's results, with which a full disk's line says how to continue.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except Exception as error:
        explained = None if is_interrupt(error) else _explain_system(error, folder)
        if explained is None:
            raise
        message = explained
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# A bug may cause any other OSError, so those keep their traceback.
_EXPLAINED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.EFBIG,
)


def _explain_system(error: Exception, folder: Path | None) -> str | None:
    """Returns a line on an error of the system; None if it is another error."""
    if is_disk_full(error):
        resume = "" if folder is None else f", then continue with resume={folder}"
        return f"the disk is full ({' '.join(str(error).split())[:300]}); free some space{resume}"
    if isinstance(error, OSError) and error.errno in _EXPLAINED and error.filename is not None:
        return f"{error.filename}: {error.strerror}; make it accessible, or choose another place"
    return None


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
