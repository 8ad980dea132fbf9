"""A task's raw files: a folder that the user names, an archive in it, or a download, checked and kept."""

import hashlib
import logging
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_jax.errors import UserError
from lora_jax.weights.sources import cache_folder

logger = logging.getLogger("lora_jax")


@dataclass(frozen=True)
class Raw:
    """A file that can be fetched from `home` + `name`, and the SHA-256 that it must have."""

    name: str
    home: str
    sha256: str


def raw_files(folder: Path, files: Sequence[str]) -> list[Path]:
    """The paths of `files` in `folder`; UserError if the folder or one of them is missing."""
    missing = [name for name in files if not (folder / name).is_file()]
    if not folder.is_dir() or missing:
        what = f"it has no {', '.join(missing)}" if folder.is_dir() else "there is no such folder"
        raise UserError(f"task.data_dir={str(folder.absolute())!r}: {what}; expected a folder with {', '.join(files)}")
    return [folder / name for name in files]


def raw_folder(task: str, data_dir: Path | None, files: Sequence[Raw], archive: str) -> Path:
    """A folder that holds `files`: `data_dir`, or the cache, where they are unpacked from `data_dir`'s zip `archive`
    (whatever folders it has inside) or, without a `data_dir`, downloaded.

    What is in the cache is used without the network. Raises UserError where a file is missing, cannot be fetched, or
    is not what was published; nothing half-written is left.
    """
    names = [raw.name for raw in files]
    if data_dir is None:
        folder = cache_folder().absolute() / "raw" / task
        if not folder.is_dir():
            _publish(folder, lambda into: _fetch(task, files, into))
        return folder
    if any((data_dir / name).is_file() for name in names) or not (data_dir / archive).is_file():
        raw_files(data_dir, names)
        return data_dir
    packed = data_dir / archive
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()[:16]
    folder = cache_folder().absolute() / "raw" / f"{task}-{digest}"
    if not folder.is_dir():
        _publish(folder, lambda into: _unpack(packed, names, into))
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """`folder`, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raw-", dir=folder.parent) as temporary:
        into = Path(temporary) / "files"
        into.mkdir()
        write(into)
        try:
            os.rename(into, folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker, and its copy is as good
                raise


def _fetch(task: str, files: Sequence[Raw], into: Path) -> None:
    for raw in files:
        _fetch_one(task, raw, into)


def _fetch_one(task: str, raw: Raw, into: Path) -> None:
    url = raw.home + raw.name
    logger.info("fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, (into / raw.name).open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise UserError(
            f"task={task}: cannot fetch {url} ({error}); fetch it by other means and name its folder by task.data_dir"
        ) from error
    held = hashlib.sha256((into / raw.name).read_bytes()).hexdigest()
    if held != raw.sha256:
        raise UserError(f"task={task}: {url} has the SHA-256 {held}, expected {raw.sha256}; it is not used")


def _unpack(packed: Path, names: Sequence[str], into: Path) -> None:
    try:
        with zipfile.ZipFile(packed) as archive:
            held = {Path(name).name: name for name in archive.namelist()}
            if missing := [name for name in names if name not in held]:
                raise UserError(f"task.data_dir: {packed.absolute()} has no {', '.join(missing)}")
            for name in names:
                (into / name).write_bytes(archive.read(held[name]))
    except zipfile.BadZipFile as error:
        raise UserError(f"task.data_dir: {packed.absolute()} is not a readable zip file ({error})") from error
