"""Zip archives: of one that cannot be trusted nothing is unpacked."""

import io
import stat
import struct
import tracemalloc
import zipfile

import pytest

from lora_jax.data import archive as archives
from lora_jax.data.archive import read_archive
from lora_jax.data.bounded import LARGEST
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.errors import UserError

CONTENT = b"mr,ref\n" * 100


def zipped(*members, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def patched(content: bytes, offset: int, form: str, *values: int) -> bytes:
    """Overwrites fields of the first member's record in the central directory."""
    start = content.index(b"PK\1\2") + offset
    return content[:start] + struct.pack(form, *values) + content[start + struct.calcsize(form) :]


def link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("a.csv")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        (tmp_path / "data.zip").write_bytes(content)
        return read_archive(tmp_path / "data.zip", ["a.csv"])

    return read


@pytest.mark.parametrize("compression", archives.COMPRESSIONS)
def test_files_are_read_whatever_folder_they_are_in(read, compression):
    given = zipped(("data/a.csv", CONTENT), ("data/b.csv", b"b"), ("readme", b""), compression=compression)
    assert read(given) == {"a.csv": CONTENT}


GOOD = zipped(("a.csv", CONTENT))
REFUSED = {
    "no zip": (b"PK", "is not a readable zip file"),
    "truncated": (GOOD[:-30], "is not a readable zip file"),
    "without its beginning": (GOOD[20:], "is not a readable zip file"),
    "a flipped bit": (GOOD.replace(GOOD[40:44], bytes(4)), "is not a readable zip file"),
    "encrypted": (patched(GOOD, 8, "<H", 1), r"a\.csv is encrypted; expected no password"),
    "an unknown compression": (
        patched(GOOD, 10, "<H", 97),
        r"a\.csv is compressed by method 97; expected stored or def",
    ),
    "LZMA": (zipped(("a.csv", CONTENT), compression=zipfile.ZIP_LZMA), "compressed by method 14"),
    "a size that is too large": (
        patched(GOOD, 24, "<I", 5000),
        r"a\.csv does not unpack to the 5000 bytes|readable zip",
    ),
    "a size that is too small": (patched(GOOD, 24, "<I", 5), "is not a readable zip file"),
    "a size above the bound": (
        patched(GOOD, 24, "<I", LARGEST + 1),
        f"unpacks to {LARGEST + 1} bytes; expected at most",
    ),
    "no such file": (zipped(("b.csv", CONTENT)), r"has no file a\.csv; expected one"),
    "two of a name": (zipped(("x/a.csv", CONTENT), ("y/a.csv", CONTENT)), r"has several files a\.csv; expected one"),
    "a folder": (zipped(("a.csv/", b"")), r"a\.csv/ is not a plain file"),
    "a link": (zipped((link(), b"/etc/passwd")), r"a\.csv is not a plain file"),
    "a name above": (zipped(("a.csv", CONTENT), ("../b", b"")), r"refused, it has a member '\.\./b'"),
    "an absolute name": (zipped(("/etc/a.csv", CONTENT)), "refused, it has a member '/etc/a.csv'"),
    "a drive": (zipped(("C:/a.csv", CONTENT)), "refused, it has a member 'C:/a.csv'"),
    "many members": (b"PK\1\2" * (archives.MEMBERS + 1) + GOOD, "has more than 10000 members"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_archive_that_cannot_be_trusted_is_refused_by_name(read, tmp_path, case):
    content, complaint = REFUSED[case]
    with pytest.raises(UserError, match=rf"task\.data_dir: {tmp_path}/data\.zip.*{complaint}"):
        read(content)


def test_a_bomb_takes_no_memory(read):
    """A member that says it has 700 bytes, and unpacks to 20 MB."""
    bomb = patched(zipped(("a.csv", bytes(20 * 10**6))), 24, "<I", 700)
    tracemalloc.start()
    with pytest.raises(UserError, match="is not a readable zip file"):
        read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_damaged_copy_is_unpacked_anew(tmp_path, private_cache, caplog):
    (tmp_path / "data.zip").write_bytes(GOOD)
    files = [RawFile("a.csv", "", "")]
    folder = raw_folder("made-up", tmp_path, files, "data.zip")
    (folder / "a.csv").write_bytes(CONTENT[:-1] + b"!")
    assert raw_folder("made-up", tmp_path, files, "data.zip") == folder
    assert (folder / "a.csv").read_bytes() == CONTENT
    assert f"{folder} is damaged: a.csv does not have the SHA-256" in caplog.text
