"""Reads files of a zip archive without trusting it."""

import io
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from lora_jax.data.bounded import LARGEST, read_bytes
from lora_jax.errors import UserError

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MEMBERS = 10_000
_MEMBER = b"PK\1\2"  # begins the record of a member
_ENCRYPTED = 1  # a bit of a member's flags


def read_archive(path: Path, names: Sequence[str], largest: int = LARGEST) -> dict[str, bytes]:
    """Returns the content of the files called `names`, whatever folders of the archive they are in.

    Raises:
      UserError: the archive cannot be read, lacks a file or has several of that name, has a member outside of its own
        folder, or a file in it is encrypted, no plain file, or larger than `largest`.
    """
    where = f"task.data_dir: {path.absolute()}"
    try:
        content = read_bytes(path, largest)
        if content.count(_MEMBER) > MEMBERS:
            raise UserError(f"{where} has more than {MEMBERS} members; it is not used")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            for member in members:
                if _leads_outside(member.filename):
                    raise UserError(f"{where}: refused, it has a member {member.filename!r}; expected relative names")
            return {name: _read(archive, _member(members, name, where), where, largest) for name in names}
    except UserError:
        raise
    # zipfile raises the last four for damaged headers, and for what it has no decoder for.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, OverflowError, ValueError) as error:
        raise UserError(f"{where} is not a readable zip file ({error or type(error).__name__})") from error


def _leads_outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or bool(PureWindowsPath(name).drive)


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
