"""Finds the raw files of a task: in the user's folder, in an archive there, or downloaded, checked and cached."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_jax.data.archive import read_archive
from lora_jax.data.bounded import read_bytes
from lora_jax.data.download import download
from lora_jax.data.kept import keep
from lora_jax.errors import UserError


@dataclass(frozen=True)
class RawFile:
    """A file at the address `url` + `name`, and the SHA-256 that it must have."""

    name: str
    url: str
    sha256: str


def raw_files(folder: Path, files: Sequence[str]) -> list[Path]:
    """Returns the paths of `files` in `folder`; UserError if the folder or one of them is missing."""
    missing = [name for name in files if not os.path.exists(folder / name)]
    if missing:
        reason = f"it has no {', '.join(missing)}" if os.path.isdir(folder) else "there is no such folder"
        raise UserError(
            f"task.data_dir={str(folder.absolute())!r}: {reason}; expected a folder with {', '.join(files)}"
        )
    return [folder / name for name in files]


def raw_folder(task: str, data_dir: Path | None, files: Sequence[RawFile], archive: str) -> Path:
    """Returns a folder that holds `files`, unpacking or downloading them first where necessary.

    With a `data_dir` that holds the files, it is that folder. With one that holds the zip `archive`, the files are
    unpacked into the cache, whatever folders they have in the archive. Without a `data_dir` they are downloaded into
    the cache, and a later call needs no network. What is in the cache is checked, and made anew if it is damaged.

    Raises:
      UserError: a file is missing, cannot be downloaded, or differs from what was published. Nothing half-written is
        left behind.
    """
    names = [raw.name for raw in files]
    if data_dir is None:
        return keep("raw", task, lambda into: _download(task, files, into), hashes={f.name: f.sha256 for f in files})
    zip_file = data_dir / archive
    if any(os.path.exists(data_dir / name) for name in names) or not os.path.exists(zip_file):
        raw_files(data_dir, names)
        return data_dir
    digest = hashlib.sha256(read_bytes(zip_file)).hexdigest()[:16]
    return keep("raw", f"{task}-{digest}", lambda into: _write(read_archive(zip_file, names), into))


def _download(task: str, files: Sequence[RawFile], into: Path) -> None:
    try:
        _write({raw.name: download(raw.url + raw.name, raw.sha256) for raw in files}, into)
    except UserError as error:
        raise UserError(
            f"task={task}: {error}; get {', '.join(raw.name for raw in files)} by other means and name their folder by "
            f"task.data_dir"
        ) from error


def _write(contents: Mapping[str, bytes], into: Path) -> None:
    for name, content in contents.items():
        (into / name).write_bytes(content)
