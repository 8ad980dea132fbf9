"""Finds the raw files of a task: in the user's folder, in an archive there, or downloaded, checked and cached."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_jax.data.archive import read_archive
from lora_jax.data.bounded import LARGEST, gunzip, read_bytes
from lora_jax.data.download import download
from lora_jax.data.kept import keep
from lora_jax.errors import UserError


@dataclass(frozen=True)
class RawFile:
    """A raw file as it is published.

    Attributes:
      name: the file's name, or its path below the task's folder.
      url: the address that the name continues, which ends with a slash, or of a zip archive that holds the file.
      sha256: the SHA-256 that a download must have; None where it is not known, so that it is not checked.
      largest: the most bytes that the file, or the archive, may have.
    """

    name: str
    url: str
    sha256: str | None = None
    largest: int = LARGEST

    @property
    def archived(self) -> bool:
        """Whether the file is published in an archive."""
        return not self.url.endswith("/")


def raw_files(folder: Path, files: Sequence[str]) -> list[Path]:
    """Returns the paths of `files` in `folder`; UserError if the folder or one of them is missing."""
    missing = [name for name in files if not os.path.exists(folder / name)]
    if missing:
        reason = f"it has no {', '.join(missing)}" if os.path.isdir(folder) else "there is no such folder"
        raise UserError(
            f"task.data_dir={str(folder.absolute())!r}: {reason}; expected a folder with {', '.join(files)}"
        )
    return [folder / name for name in files]


def raw_folder(task: str, data_dir: Path | None, files: Sequence[RawFile], archive: str = "") -> Path:
    """Returns a folder that holds `files`, unpacking or downloading them first where necessary.

    With a `data_dir` that holds the files, it is that folder. Files there that are compressed (``train.tsv.gz``), and
    files in the zip `archive` there, are unpacked into the cache, whatever folders they have in the archive. Without a
    `data_dir` they are downloaded into the cache, and a later call needs no network. What is in the cache is checked,
    and made anew if it is damaged.

    Raises:
      UserError: a file is missing, cannot be downloaded, or differs from what was published. Nothing half-written is
        left behind.
    """
    if data_dir is None:
        published = {raw.name: raw.sha256 for raw in files if raw.sha256}
        hashes = published if len(published) == len(files) else None
        return keep("raw", task, lambda into: _download(task, files, into), hashes=hashes)
    names = [raw.name for raw in files]
    zip_file = data_dir / archive
    compressed = [name for name in names if not os.path.exists(data_dir / name)]
    if archive and len(compressed) == len(names) and os.path.exists(zip_file):
        content = read_bytes(zip_file, max(raw.largest for raw in files))
        digest = hashlib.sha256(content).hexdigest()[:16]
        return keep(
            "raw",
            f"{task}-{digest}",
            lambda into: _write(read_archive(zip_file, names, max(raw.largest for raw in files)), into),
        )
    if not compressed or not all(os.path.exists(data_dir / f"{name}.gz") for name in compressed):
        raw_files(data_dir, names)
        return data_dir
    stored = {raw.name: _stored(data_dir, raw) for raw in files}
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in stored.values())).hexdigest()[:16]
    return keep("raw", f"{task}-{digest}", lambda into: _write(stored, into))


def _stored(folder: Path, raw: RawFile) -> bytes:
    path = folder / raw.name
    return read_bytes(path, raw.largest) if os.path.exists(path) else gunzip(folder / f"{raw.name}.gz", raw.largest)


def _download(task: str, files: Sequence[RawFile], into: Path) -> None:
    try:
        for url in dict.fromkeys(raw.url for raw in files if raw.archived):
            members = [raw for raw in files if raw.url == url]
            largest = max(raw.largest for raw in members)
            path = into / "archive.zip"
            path.write_bytes(download(url, None, largest))
            contents = read_archive(path, [raw.name for raw in members], largest)
            path.unlink()
            for raw in members:
                _check(contents[raw.name], raw)
            _write(contents, into)
        single = [raw for raw in files if not raw.archived]
        _write({raw.name: download(raw.url + raw.name, raw.sha256, raw.largest) for raw in single}, into)
    except UserError as error:
        raise UserError(
            f"task={task}: {error}; get {', '.join(raw.name for raw in files)} by other means and name their folder by "
            f"task.data_dir"
        ) from error


def _check(content: bytes, raw: RawFile) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if raw.sha256 and actual != raw.sha256:
        raise UserError(f"{raw.name} in {raw.url} has the SHA-256 {actual}; expected {raw.sha256}")


def _write(contents: Mapping[str, bytes], into: Path) -> None:
    for name, content in contents.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(content)
