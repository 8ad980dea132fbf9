"""Reads files of the user, of which neither the kind nor the size is known."""

import contextlib
import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from lora_jax.errors import UserError

LARGEST = 64 * 2**20  # bytes of a raw file, an archive or a download, for tasks that do not say more


@contextlib.contextmanager
def open_bounded(path: Path, largest: int = LARGEST) -> Iterator[io.BufferedReader]:
    """Opens a raw file for reading.

    Raises:
      UserError: it is not a regular file, has more than `largest` bytes, or cannot be read, also later in the context.
    """
    where = f"task.data_dir: {path.absolute()}"
    try:
        # Without O_NONBLOCK, a FIFO waits for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{where} is not a regular file; expected one")
            if status.st_size > largest:
                raise UserError(f"{where} has {status.st_size} bytes; expected at most {largest}")
            yield file
    except IsADirectoryError:
        raise UserError(f"{where} is a folder; expected a file") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; expected a readable file") from error


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Returns the content of a raw file; UserError as in `open_bounded`."""
    with open_bounded(path, largest) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def sha256_of(path: Path, largest: int = LARGEST) -> bytes:
    """Returns the SHA-256 of a raw file, which is never in memory as a whole; UserError as in `open_bounded`."""
    with open_bounded(path, largest) as file:
        return hashlib.file_digest(file, "sha256").digest()


def gunzip(path: Path, largest: int = LARGEST) -> bytes:
    """Returns what a gzip file unpacks to.

    Raises:
      UserError: as in `read_bytes`, or it is damaged, or unpacks to more than `largest` bytes.
    """
    where = f"task.data_dir: {path.absolute()}"
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_bytes(path, largest))) as file:
            content = file.read(largest + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} is not a readable gzip file ({error}); expected one") from error
    if len(content) > largest:
        raise UserError(f"{where} unpacks to more than {largest} bytes; expected at most so many")
    return content
