"""Tar archives in bzip2: of one that cannot be trusted nothing is unpacked."""

import bz2
import io
import tarfile
import tracemalloc

import pytest

from lora_jax.data import archive as archives
from lora_jax.data.archive import read_archive
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.errors import UserError

CONTENT = b"a line\n" * 100
LARGEST = 100_000


def packed(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """Returns an archive of files, and of members of another kind, which have no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        (tmp_path / "data.tar.bz2").write_bytes(content)
        return read_archive(tmp_path / "data.tar.bz2", ["a.jsonl", "b.jsonl"], LARGEST)

    return read


def test_files_are_read_whatever_folder_they_are_in(read):
    given = packed(("data/b.jsonl", b"b"), ("data/a.db", b"x" * 2 * LARGEST), ("data/a.jsonl", CONTENT))
    assert read(given) == {"a.jsonl": CONTENT, "b.jsonl": b"b"}


GOOD = packed(("a.jsonl", CONTENT), ("b.jsonl", b""))
REFUSED = {
    "no archive": (b"BZh", "is not a readable tar file in bzip2"),
    "no tar": (bz2.compress(CONTENT), "is not a readable tar file in bzip2"),
    "truncated": (GOOD[:-20], "is not a readable tar file in bzip2"),
    "cut in a member": (bz2.compress(bz2.decompress(GOOD)[:700]), "is not a readable tar file in bzip2"),
    "a flipped bit": (GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:], "is not a readable tar file in bzip2"),
    "no such file": (packed(("a.jsonl", CONTENT)), r"has no file b\.jsonl; expected one"),
    "two of a name": (packed(("x/a.jsonl", b""), ("y/a.jsonl", b"")), r"has several files a\.jsonl; expected one"),
    "a folder": (packed(("a.jsonl", b""), kind=tarfile.DIRTYPE), r"a\.jsonl is not a plain file"),
    "a link": (packed(("a.jsonl", b""), kind=tarfile.SYMTYPE), r"a\.jsonl is not a plain file"),
    "a hard link": (packed(("a.jsonl", b""), kind=tarfile.LNKTYPE), r"a\.jsonl is not a plain file"),
    "a device": (packed(("a.jsonl", b""), kind=tarfile.CHRTYPE), r"a\.jsonl is not a plain file"),
    "a name above": (packed(("a.jsonl", b""), ("../b", b"")), r"refused, it has a member '\.\./b'"),
    "an absolute name": (packed(("/etc/a.jsonl", b"")), "refused, it has a member '/etc/a.jsonl'"),
    "a large file": (packed(("a.jsonl", bytes(LARGEST + 1))), r"a\.jsonl unpacks to 100001 bytes; expected at most"),
    "a large whole": (packed(("x", bytes(9 * LARGEST)), ("a.jsonl", b"")), "unpacks to more than 800000 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_archive_that_cannot_be_trusted_is_refused_by_name(read, tmp_path, case):
    content, complaint = REFUSED[case]
    with pytest.raises(UserError, match=rf"task\.data_dir: {tmp_path}/data\.tar\.bz2.*{complaint}"):
        read(content)


def test_many_members_are_refused(read, monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 3)
    with pytest.raises(UserError, match="has more than 3 members; it is not used"):
        read(packed(*[(f"{i}", b"") for i in range(4)]))


def test_a_bomb_takes_no_memory(read):
    """One kilobyte that unpacks to 200 MB, of which no more is read than is asked for."""
    bomb = packed(("x", bytes(200 * 10**6)))
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 800000 bytes"):
        read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_an_archive_in_the_users_folder_is_unpacked_into_the_cache(tmp_path, private_cache):
    (tmp_path / "data.tar.bz2").write_bytes(GOOD)
    folder = raw_folder("made-up", tmp_path, [RawFile("a.jsonl", "")], "data.tar.bz2")
    assert folder.is_relative_to(tmp_path / "cache") and (folder / "a.jsonl").read_bytes() == CONTENT
