"""Prepared data in the cache: damage is found, said, and made good from the raw files."""

import json
import resource
import shutil
from pathlib import Path

import pytest

from lora_jax.data.kept import MANIFEST, damage_to, keep
from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write(into):
    (into / "part").mkdir()
    (into / "part" / "a").write_text("aaa")
    (into / "b").write_text("bbb")


# ---- a kept folder


def test_a_folder_is_written_once(cache):
    folder = keep("made-up", "one", write)
    assert folder == cache / "made-up" / "one" and (folder / "part" / "a").read_text() == "aaa"
    assert keep("made-up", "one", lambda into: pytest.fail("it is there")) == folder
    assert {path.name for path in folder.parent.iterdir()} == {"one"}


DAMAGE = {
    "a flipped bit": (lambda folder: flip(folder / "b"), "b does not have the SHA-256"),
    "a truncated file": (lambda folder: (folder / "b").write_text("bb"), "b does not have the SHA-256"),
    "a missing file": (lambda folder: (folder / "part" / "a").unlink(), "part/a is missing"),
    "a folder in a file's place": (lambda folder: [(folder / "b").unlink(), (folder / "b").mkdir()], "b is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "No such file"),
    "a flipped bit in the manifest": (lambda folder: flip(folder / MANIFEST), "does not fit its hash"),
    "a manifest of nothing": (
        lambda folder: (folder / MANIFEST).write_text('{"files": {}}'),
        "does not fit its hash",
    ),
    "a manifest that is no object": (
        lambda folder: (folder / MANIFEST).write_text("[]"),
        "does not fit its hash",
    ),
    "a file in the folder's place": (lambda folder: [shutil.rmtree(folder), folder.write_text("")], "Not a directory"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_replaced(caplog, case):
    damage, reason = DAMAGE[case]
    folder = keep("made-up", "one", write)
    damage(folder)
    assert keep("made-up", "one", write) == folder
    assert (folder / "b").read_text() == "bbb" and (folder / "part" / "a").read_text() == "aaa"
    assert damage_to(folder) is None
    assert {path.name for path in folder.parent.iterdir()} == {"one"}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{folder} is damaged: ") and record.getMessage().endswith("made anew")
    assert reason in record.getMessage()


def test_a_copy_that_another_process_made_meanwhile_stays(cache):
    """It is in use; so a process that is late throws its own away."""
    folder = keep("made-up", "one", write)
    flip(folder / "b")
    made = []

    def slow(into):
        made.append((keep("made-up", "one", write) / "b").stat().st_ino)
        write(into)

    assert (keep("made-up", "one", slow) / "b").stat().st_ino == made[0]


def test_a_writer_that_fails_leaves_what_was_there(cache):
    def fail(into):
        write(into)
        raise UserError("the raw files are gone")

    with pytest.raises(UserError, match=r"^the raw files are gone"):
        keep("made-up", "one", fail)
    assert not list((cache / "made-up").iterdir())
    folder = keep("made-up", "one", write)
    flip(folder / "b")
    with pytest.raises(
        UserError, match=rf"{folder} is damaged \(b .*\), and cannot be made anew: the raw files are gone"
    ):
        keep("made-up", "one", fail)


# ---- prepared data


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "banking"
    folder.mkdir()
    rows = "".join(f"Question {label}{i}?,{label}\n" for label in "ab" for i in range(5))
    (folder / "train.csv").write_text(f"text,category\n{rows}")
    (folder / "test.csv").write_text("text,category\nWhy?,a\n")
    (folder / "categories.json").write_text('["a", "b"]')
    return folder


def prepared_files(cache):
    return sorted(path for path in (cache / "tfds").rglob("*") if path.is_file())


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_no_damage_to_prepared_data_is_read(raw, cache, caplog, damage):
    fingerprint = load_task("banking77", raw).fingerprint
    files = prepared_files(cache)
    assert {"dataset_info.json", "features.json", "label.labels.txt", MANIFEST} < {path.name for path in files}
    assert sum("array_record" in path.name for path in files) == 3
    for path in files:
        caplog.clear()
        damage(path)
        assert load_task("banking77", raw).fingerprint == fingerprint
        assert caplog.text.count("is damaged: ") == 1 and path.name in caplog.text
    assert prepared_files(cache) == files


def test_damaged_data_cannot_be_prepared_from_files_that_are_gone(raw, cache):
    load_task("banking77", raw)
    (raw / "test.csv").unlink()
    with pytest.raises(UserError, match=r"it has no test\.csv"):
        load_task("banking77", raw)


def test_a_full_disk_is_said_and_leaves_nothing(raw, cache):
    """Files above 100 bytes cannot be written, as on a disk without room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"the cache folder {cache}/tfds cannot be used: .*set LORA_JAX_CACHE"):
            load_task("banking77", raw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((cache / "tfds").iterdir())
    assert len(load_task("banking77", raw).splits["train"]) == 8


def test_the_manifest_names_every_file(raw, cache):
    load_task("banking77", raw)
    (folder,) = (cache / "tfds").iterdir()
    named = json.loads((folder / MANIFEST).read_text())["files"]
    assert {folder / name for name in named} == {*prepared_files(cache)} - {folder / MANIFEST}
