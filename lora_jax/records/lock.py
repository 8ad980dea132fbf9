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

_held: set[Path] = set()  # by this process


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
    _held.add(folder)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _describe_process().encode())
        yield
    finally:
        _held.discard(folder)
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


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
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _describe_process() -> str:
    since = datetime.datetime.now().isoformat(timespec="seconds", sep=" ")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"
