"""The cache folder for downloads, prepared data and compiled programs."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lora_jax.errors import UserError


def cache_folder() -> Path:
    """Returns ``$LORA_JAX_CACHE``, else ``$XDG_CACHE_HOME/lora_jax``, else ``~/.cache/lora_jax``. It need not exist.

    Raises:
      UserError: the folder is in a home folder that cannot be found.
    """
    folder = Path(os.environ.get("LORA_JAX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lora_jax"))
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise _refused(folder, str(error)) from None


def private_folder(name: str) -> Path:
    """Returns the sub-folder `name` of the cache, created with mode 0700 where it is missing.

    What is kept there is trusted, and compiled programs are run, so nobody else may write to it.

    Raises:
      UserError: the cache or the sub-folder cannot be created or written to, or another user can write to it.
    """
    root = cache_folder()
    for folder in (root, root / name):
        with writing_to(folder):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except FileExistsError:
                raise _refused(folder, "it is not a folder") from None
            status = folder.stat()
        if status.st_uid != os.geteuid():
            raise _refused(folder, f"it belongs to the user with the id {status.st_uid}, and this is {os.geteuid()}")
        if status.st_mode & 0o022:
            raise _refused(folder, f"others can write to it (mode {status.st_mode & 0o777:04o}); run chmod go-w on it")
    with writing_to(folder):
        tempfile.TemporaryFile(dir=folder).close()
    return folder


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Reports an OSError within the context as a UserError: `folder`, in the cache, cannot be written to."""
    try:
        yield
    except OSError as error:
        raise _refused(folder, error.strerror or str(error)) from error


def _refused(folder: Path, reason: str) -> UserError:
    return UserError(
        f"the cache folder {folder} cannot be used: {reason}; set LORA_JAX_CACHE to a folder with enough room that "
        f"only you can write to"
    )
