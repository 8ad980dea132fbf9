"""Reads files of the user, of which neither the kind nor the size is known."""

import os
import stat
from pathlib import Path

from lora_jax.errors import UserError

LARGEST = 64 * 2**20  # bytes of a raw file, an archive or a download; the largest of today's tasks has 9 MB


def read_bytes(path: Path) -> bytes:
    """Returns the content of a raw file.

    Raises:
      UserError: it is not a regular file, has more than LARGEST bytes, or cannot be read.
    """
    where = f"task.data_dir: {path.absolute()}"
    try:
        # Without O_NONBLOCK, a FIFO waits for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{where} is not a regular file; expected one")
            if status.st_size > LARGEST:
                raise UserError(f"{where} has {status.st_size} bytes; expected at most {LARGEST}")
            return file.read(status.st_size)
    except IsADirectoryError:
        raise UserError(f"{where} is a folder; expected a file") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; expected a readable file") from error
