"""Whatever bytes a data set's files hold, they are read or refused by a UserError, within a second and 16 MB."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from faults.fuzzing import fuzzed, json_values, works_or_is_refused
from hypothesis import example, given
from hypothesis import strategies as st

from lora_jax.data.archive import read_archive
from lora_jax.data.kept import MANIFEST, damage_to, keep
from lora_jax.data.tables import read_csv, read_labels, read_tsv
from lora_jax.data.tasks import load_task
from lora_jax.data.tasks.e2e.builder import prompt
from lora_jax.errors import UserError
from lora_jax.records.sealed import seal

pieces = st.one_of(
    st.sampled_from(list(",\t\"'\n\r\0\ufeffa0 \u2028\x1a\x85é\\;")),
    st.sampled_from(["text", "label", "\r\n", "text,label\n", "text\tlabel\n", "nan"]),
)
tables = st.one_of(
    st.binary(max_size=200),
    st.lists(pieces, max_size=40).map(lambda parts: "".join(parts).encode()),
    st.tuples(st.lists(pieces, max_size=20), st.sampled_from(["utf-16", "utf-8-sig", "cp1252", "utf-32"])).map(
        lambda given: "".join(given[0]).encode(given[1], errors="replace")
    ),
    st.lists(pieces, max_size=20).map(lambda parts: ("text,label\n" + "".join(parts)).encode()),
    st.tuples(pieces, pieces).map(lambda ends: ("x" * 140_000).join(ends).encode()),  # more than a field may have
)


def check_table(folder: Path, content: bytes) -> None:
    path = folder / "train.csv"
    path.write_bytes(content)
    for read in (read_csv, read_tsv):
        for row in works_or_is_refused(read, path, ("text", "label")) or ():
            assert set(row.values) >= {"text", "label"}
            works_or_is_refused(row.text, "text")
            works_or_is_refused(row.label, "label", ("a",), "a")
            works_or_is_refused(row.number, "label")


json_files = st.one_of(
    st.binary(max_size=100),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(st.text(max_size=8), max_size=5).map(lambda names: json.dumps(names).encode()),
    st.tuples(st.sampled_from(["[", '{"a":', "9", '"']), st.integers(0, 50_000)).map(
        lambda it: (it[0] * it[1]).encode()
    ),
)


def check_labels(folder: Path, content: bytes) -> None:
    path = folder / "categories.json"
    path.write_bytes(content)
    for name in works_or_is_refused(read_labels, path) or ():
        assert name == name.strip() and name.encode().decode().splitlines() != []


@fuzzed
@given(
    mr=st.one_of(
        st.text(max_size=50),
        st.text(alphabet="a[], \n|:é", max_size=60),
        st.tuples(st.sampled_from(["a", "[", "]", "a[b], ", ","]), st.integers(0, 60_000)).map(
            lambda it: it[0] * it[1]
        ),
    )
)
def test_meaning_representations(mr: str):
    try:
        text = prompt(mr)
    except ValueError:
        return
    assert text.count(" : ") >= text.count(" | ") + 1 - mr.count("|") and mr.rstrip().endswith("]")


def archive(members: list[tuple[str, bytes]], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in members:
            made.writestr(name, content)
    return buffer.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A zip archive in which some bytes are replaced, inserted or removed."""
    names = st.sampled_from(["a.csv", "x/a.csv", "../a.csv", "/a.csv", "a.csv/", "b", "é", "C:a.csv"])
    contents = st.one_of(st.binary(max_size=30), st.just(b"text,label\n" * 20), st.just(bytes(2**20)))
    members = draw(st.lists(st.tuples(names, contents), max_size=3))
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]))
    content = bytearray(archive([("a.csv", b"text,label\n" * 20), *members], compression))
    for _ in range(draw(st.integers(0, 4))):
        # Most structure is at the end: the central directory.
        place = len(content) - 1 - draw(st.integers(0, min(len(content) - 1, 250)))
        content[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content)


def check_archive(folder: Path, content: bytes) -> None:
    path = folder / "data.zip"
    path.write_bytes(content)
    read = works_or_is_refused(read_archive, path, ["a.csv"])
    assert read is None or set(read) == {"a.csv"}


# Content for a reader, and what reads it into a folder and checks the result.
READERS = {
    "table": (tables, check_table),
    "labels": (json_files, check_labels),
    "archive": (st.one_of(archives(), st.binary(max_size=100)), check_archive),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("reader", READERS)
def test_files_are_read_or_refused(tmp_path: Path, reader: str):
    contents, check = READERS[reader]

    @fuzzed
    @given(contents)
    def is_read_or_refused(content: bytes):
        check(tmp_path, content)

    is_read_or_refused()


@fuzzed
@given(
    content=st.one_of(
        json_files,
        json_values.map(lambda value: json.dumps(seal({"files": value})).encode()),
        st.dictionaries(st.text(max_size=4), st.text(max_size=4)).map(
            lambda files: json.dumps(seal({"files": files})).encode()
        ),
    )
)
@example(json.dumps(seal({})).encode())
def test_manifests(tmp_path: Path, content: bytes):
    (tmp_path / MANIFEST).write_bytes(content)
    damage = damage_to(tmp_path)
    assert damage is None or damage


@fuzzed
@given(place=st.integers(0, 10**6), byte=st.integers(1, 255))
def test_no_byte_of_a_kept_folder_can_change(tmp_path_factory, place: int, byte: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "kept"))
        folder = keep("made-up", "one", lambda into: (into / "file").write_bytes(b"content") and None)
    for path in (folder / "file", folder / MANIFEST):
        sound = path.read_bytes()
        changed = bytearray(sound)
        changed[place % len(sound)] ^= byte
        path.write_bytes(changed)
        damage = damage_to(folder)
        path.write_bytes(sound)
        # Space between the parts of JSON has no meaning.
        assert damage or json.loads(changed) == json.loads(sound)


FILES = {"banking77": ("train.csv", "test.csv"), "cola": ("train.tsv", "dev.tsv")}
GOOD = {
    "banking77": "text,category\n" + "".join(f"question {i},{i % 2}\n" for i in range(12)),
    "cola": "".join(f"x\t{i % 2}\t\tsentence {i}\n" for i in range(12)),
}


@pytest.mark.parametrize("task", FILES)
@fuzzed
@given(
    place=st.integers(0, 500), removed=st.integers(0, 5), added=st.one_of(st.binary(max_size=4), pieces.map(str.encode))
)
def test_whole_tasks(tmp_path: Path, task: str, place: int, removed: int, added: bytes):
    """A file in which some bytes are replaced is read with as many examples as it has, or refused."""
    good = GOOD[task].encode()
    place %= len(good)
    train, test = FILES[task]
    (tmp_path / train).write_bytes(good[:place] + added + good[place + removed :])
    (tmp_path / test).write_bytes(good)
    (tmp_path / "categories.json").write_text('["0", "1"]')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
        try:
            data = load_task(task, tmp_path)
        except UserError:
            return
    assert len(data.splits["test"]) == 12 and data.splits["train"].texts and data.splits["valid"].texts
