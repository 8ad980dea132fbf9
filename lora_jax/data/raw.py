"""Finds the raw files of a task: in the user's folder, in an archive there, or downloaded, checked and cached."""

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

from lora_jax.cache import cache_folder
from lora_jax.errors import UserError

logger = logging.getLogger("lora_jax")


@dataclass(frozen=True)
class RawFile:
    """A file at the address `url` + `name`, and the SHA-256 that it must have."""

    name: str
    url: str
    sha256: str


def raw_files(folder: Path, files: Sequence[str]) -> list[Path]:
    """Returns the paths of `files` in `folder`; UserError if the folder or one of them is missing."""
    missing = [name for name in files if not (folder / name).is_file()]
    if not folder.is_dir() or missing:
        reason = f"it has no {', '.join(missing)}" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"task.data_dir={str(folder.absolute())!r}: {reason}; expected a folder with {', '.join(files)}"
        )
    return [folder / name for name in files]


def raw_folder(task: str, data_dir: Path | None, files: Sequence[RawFile], archive: str) -> Path:
    """Returns a folder that holds `files`, unpacking or downloading them first where necessary.

    With a `data_dir` that holds the files, it is that folder. With one that holds the zip `archive`, the files are
    unpacked into the cache, whatever folders they have in the archive. Without a `data_dir` they are downloaded into
    the cache, and a later call needs no network.

    Raises:
      UserError: a file is missing, cannot be downloaded, or differs from what was published. Nothing half-written is
        left behind.
    """
    names = [raw.name for raw in files]
    if data_dir is None:
        folder = cache_folder().absolute() / "raw" / task
        if not folder.is_dir():
            _publish(folder, lambda into: _download_all(task, files, into))
        return folder
    if any((data_dir / name).is_file() for name in names) or not (data_dir / archive).is_file():
        raw_files(data_dir, names)
        return data_dir
    zip_file = data_dir / archive
    digest = hashlib.sha256(zip_file.read_bytes()).hexdigest()[:16]
    folder = cache_folder().absolute() / "raw" / f"{task}-{digest}"
    if not folder.is_dir():
        _publish(folder, lambda into: _unpack(zip_file, names, into))
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Creates `folder` with what `write` puts into it, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raw-", dir=folder.parent) as temporary:
        into = Path(temporary) / "files"
        into.mkdir()
        write(into)
        try:
            os.rename(into, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker, and its copy is as good
                raise


def _download_all(task: str, files: Sequence[RawFile], into: Path) -> None:
    for raw in files:
        _download(task, raw, into)


def _download(task: str, raw: RawFile, into: Path) -> None:
    url = raw.url + raw.name
    logger.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, (into / raw.name).open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise UserError(
            f"task={task}: cannot download {url} ({error}); get it by other means and name its folder by task.data_dir"
        ) from error
    sha256 = hashlib.sha256((into / raw.name).read_bytes()).hexdigest()
    if sha256 != raw.sha256:
        raise UserError(f"task={task}: {url} has the SHA-256 {sha256}, expected {raw.sha256}; it is not used")


def _unpack(zip_file: Path, names: Sequence[str], into: Path) -> None:
    try:
        with zipfile.ZipFile(zip_file) as archive:
            members = {Path(name).name: name for name in archive.namelist()}
            if missing := [name for name in names if name not in members]:
                raise UserError(f"task.data_dir: {zip_file.absolute()} has no {', '.join(missing)}")
            for name in names:
                (into / name).write_bytes(archive.read(members[name]))
    except zipfile.BadZipFile as error:
        raise UserError(f"task.data_dir: {zip_file.absolute()} is not a readable zip file ({error})") from error
