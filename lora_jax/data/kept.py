"""Folders of the cache that are written once and whole, and checked at every use against hashes of their files."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pydantic

from lora_jax.cache import cache_folder, private_folder, writing_to
from lora_jax.errors import UserError
from lora_jax.records import write_json
from lora_jax.records.sealed import unseal

logger = logging.getLogger("lora_jax")

MANIFEST = "manifest.json"
_FILES = pydantic.TypeAdapter(dict[str, str])


def keep(group: str, name: str, write: Callable[[Path], None], *, hashes: Mapping[str, str] | None = None) -> Path:
    """Returns the folder `name` in the cache's sub-folder `group`. It is written where it is missing or damaged.

    Several processes may do so at once. None of them sees a folder that is half-written.

    Args:
      group: a sub-folder of the cache.
      name: the folder in it.
      write: fills an empty folder.
      hashes: the SHA-256 that each file must have; by default that of the file when it was written, kept in MANIFEST.

    Raises:
      UserError: the cache cannot be written to, or `write` raises one.
    """
    folder = cache_folder() / group / name
    exists = os.path.lexists(folder)
    damage = damage_to(folder, hashes)
    if damage is None:
        return folder
    if exists:
        logger.warning("%s is damaged: %s. It is made anew", folder, damage)
    parent = private_folder(group)
    # Temporary folders are on the file system of the cache, so that they can be renamed.
    with (
        writing_to(parent),
        tempfile.TemporaryDirectory(prefix=".new-", dir=parent, ignore_cleanup_errors=True) as temporary,
    ):
        new = Path(temporary) / "new"
        new.mkdir()
        try:
            write(new)
        except UserError as error:
            if not exists:
                raise
            raise UserError(f"{folder} is damaged ({damage}), and cannot be made anew: {error}") from error
        if hashes is None:
            write_json(new / MANIFEST, {"files": _hashes_of(new)})
        with _locked(parent):
            if damage_to(folder, hashes) is not None:  # otherwise another process was quicker
                if os.path.lexists(folder):
                    os.rename(folder, Path(temporary) / "damaged")
                os.rename(new, folder)
    return folder


def damage_to(folder: Path, hashes: Mapping[str, str] | None = None) -> str | None:
    """Returns what is wrong with a folder that `keep` wrote, or None. Files that have no hash are not looked at."""
    try:
        expected = _read_manifest(folder) if hashes is None else hashes
        for name, sha256 in expected.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != sha256:
                return f"{name} does not have the SHA-256 {sha256}"
    except OSError as error:
        return str(error)
    return None


def _read_manifest(folder: Path) -> dict[str, str]:
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
        return _FILES.validate_python(unseal(values if isinstance(values, dict) else {}, where=MANIFEST).get("files"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{MANIFEST} does not fit its hash") from error


def _hashes_of(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from replacing what is in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
