"""Reads files of a zip archive, or of a tar archive in bzip2 or gzip, without trusting it."""

import bz2
import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from lora_jax.data.bounded import LARGEST, read_bytes
from lora_jax.errors import UserError

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MEMBERS = 10_000
_MEMBER = b"PK\1\2"  # begins the record of a member
_ENCRYPTED = 1  # a bit of a member's flags
_GZIP = b"\x1f\x8b"
# By what a compressed file begins with.
_TARS: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"BZh": ("bzip2", bz2.BZ2File),
    _GZIP: ("gzip", gzip.open),
}
_UNPACKED = 8  # the most that a tar archive unpacks to with all its members, in multiples of its largest file


def read_archive(path: Path, names: Sequence[str], largest: int = LARGEST) -> dict[str, bytes]:
    """Returns the content of the files called `names`, whatever folders of the archive they are in.

    Raises:
      UserError: the archive cannot be read, lacks a file or has several of that name, has a member outside of its own
        folder, or a file in it is encrypted, no plain file, or larger than `largest`.
    """
    where = f"task.data_dir: {path.absolute()}"
    content = read_bytes(path, largest)
    if content.startswith(tuple(_TARS)):
        return _read_tar(content, names, where, largest)
    try:
        if content.count(_MEMBER) > MEMBERS:
            raise UserError(f"{where} has more than {MEMBERS} members; it is not used")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            for member in members:
                _refuse_outside(member.filename, where)
            return {name: _read(archive, _member(members, name, where), where, largest) for name in names}
    except UserError:
        raise
    # zipfile raises the last four for damaged headers, and for what it has no decoder for.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, OverflowError, ValueError) as error:
        raise UserError(f"{where} is not a readable zip file ({error or type(error).__name__})") from error


def tar_files(path: Path, suffix: str, largest: int = LARGEST, members: int = MEMBERS) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the content of every file of a compressed tar archive whose name ends with `suffix`.

    Args:
      path: the archive.
      suffix: such as ``.jpg``.
      largest: bytes of the archive, and of each file in it.
      members: the archive may have so many.

    Raises:
      UserError: as in `read_archive`.
    """
    where = f"task.data_dir: {path.absolute()}"
    yield from _tar_files(read_bytes(path, largest), lambda name: name.endswith(suffix), where, largest, members)


def _read_tar(content: bytes, names: Sequence[str], where: str, largest: int) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    wanted = frozenset(names)
    for path, file in _tar_files(content, lambda path: PurePosixPath(path).name in wanted, where, largest, MEMBERS):
        name = PurePosixPath(path).name
        if name in contents:
            raise UserError(f"{where} has several files {name}; expected one")
        contents[name] = file
    if missing := [name for name in names if name not in contents]:
        raise UserError(f"{where} has no file {missing[0]}; expected one")
    return contents


def _tar_files(
    content: bytes, wanted: Callable[[str], bool], where: str, largest: int, members: int
) -> Iterator[tuple[str, bytes]]:
    compression, opener = _TARS.get(content[:3]) or _TARS[_GZIP]
    try:
        # A stream is unpacked once, from front to end, and nothing of it is written anywhere.
        unpacked = _Bounded(opener(io.BytesIO(content)), _UNPACKED * largest, where)
        with tarfile.open(fileobj=unpacked, mode="r|", errorlevel=2) as archive:
            for i, member in enumerate(archive):
                if i >= members:
                    raise UserError(f"{where} has more than {members} members; it is not used")
                _refuse_outside(member.name, where)
                if not wanted(member.name):
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    raise UserError(f"{where}: {member.name} is not a plain file; expected one")
                if member.size > largest:
                    raise UserError(
                        f"{where}: {member.name} unpacks to {member.size} bytes; expected at most {largest}"
                    )
                yield member.name, file.read()
    except UserError:
        raise
    except (tarfile.TarError, OSError, EOFError, OverflowError, ValueError, zlib.error) as error:
        raise UserError(
            f"{where} is not a readable tar file in {compression} ({error or type(error).__name__})"
        ) from error


class _Bounded(io.RawIOBase):
    """Reads a file, but no more than `most` bytes of it."""

    def __init__(self, file: BinaryIO, most: int, where: str):
        super().__init__()
        self._file, self._left, self._most, self._where = file, most, most, where

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise UserError(f"{self._where} unpacks to more than {self._most} bytes; expected at most so many")
        return content


def _refuse_outside(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
        raise UserError(f"{where}: refused, it has a member {name!r}; expected relative names")


def _member(members: Sequence[zipfile.ZipInfo], name: str, where: str) -> zipfile.ZipInfo:
    found = [member for member in members if PurePosixPath(member.filename).name == name]
    if len(found) != 1:
        raise UserError(f"{where} has {'several files' if found else 'no file'} {name}; expected one")
    return found[0]


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, largest: int) -> bytes:
    def refused(reason: str) -> UserError:
        return UserError(f"{where}: {member.filename} {reason}")

    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG) or member.is_dir():
        raise refused("is not a plain file; expected one")
    if member.flag_bits & _ENCRYPTED:
        raise refused("is encrypted; expected no password")
    if member.compress_type not in COMPRESSIONS:
        raise refused(f"is compressed by method {member.compress_type}; expected stored or deflated files")
    if member.file_size > largest:
        raise refused(f"unpacks to {member.file_size} bytes; expected at most {largest}")
    with archive.open(member) as file:
        content = file.read(member.file_size)
        if len(content) != member.file_size:
            raise refused(f"does not unpack to the {member.file_size} bytes that are declared")
    return content
