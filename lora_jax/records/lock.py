"""A lock on a folder of results, so that two processes never write to the same runs."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lora_jax.errors import UserError

LOCK_FILE = ".lock"

_held: dict[Path, int] = {}  # descriptors of the lock files of this process, by folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks `folder`, which exists, for this process. The system releases the lock if the process dies.

    A process that already has the lock may lock the folder again.

    Raises:
      UserError: another process has the lock. The message says which.
    """
    folder = Path(folder).resolve()
    if folder in _held:
        yield
        return
    path = folder / LOCK_FILE
    descriptor = _acquire(path)
    _held[folder] = descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _describe_process().encode())
        yield
    finally:
        if has_lock(folder):
            with contextlib.suppress(OSError):
                path.unlink()
        del _held[folder]
        os.close(descriptor)


def has_lock(folder: Path) -> bool:
    """Returns whether this process has the lock of `folder`. False if the folder was removed, and perhaps made anew."""
    folder = Path(folder).resolve()
    try:
        return folder in _held and os.path.samestat(os.stat(folder / LOCK_FILE), os.fstat(_held[folder]))
    except OSError:
        return False


def _acquire(path: Path) -> int:
    """Returns the descriptor of the locked file at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{path.parent} is in use by {holder}; wait for it or stop it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            return descriptor
        # The holder before may have removed the file between the two calls above.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _describe_process() -> str:
    since = datetime.datetime.now().isoformat(timespec="seconds", sep=" ")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"
