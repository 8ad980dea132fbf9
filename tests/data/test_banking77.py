"""BANKING77 and its TFDS builder: every row once, the same everywhere, prepared once."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_jax.data.prepared import open_builder
from lora_jax.data.tasks import banking77, load_task
from lora_jax.errors import UserError

ROOT = Path(__file__).parents[2]
RAW = Path(banking77.__file__).parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LORA_JAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def task(cache):
    return load_task("banking77")


@pytest.fixture
def raw(tmp_path):
    """A copy of BANKING77's raw files, to be spoilt."""
    for name in banking77.FILES:
        shutil.copy(RAW / name, tmp_path / name)
    return tmp_path


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def named(task, *splits):
    parts = [task.splits[name] for name in splits]
    return sorted((text, task.labels[k]) for part in parts for text, k in zip(part.texts, part.labels, strict=True))


def bare(text):
    return " ".join(text.lower().split())


def test_banking77_holds_every_row_of_the_source_once(task):
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 8998, "valid": 1005, "test": 3080}
    assert named(task, "train", "valid") == sorted(rows_of(RAW / "train.csv"))
    assert named(task, "test") == sorted(rows_of(RAW / "test.csv"))
    assert task.labels == tuple(json.loads((RAW / "categories.json").read_text()))
    assert all(split.labels.dtype == np.int32 for split in task.splits.values())


def test_banking77_is_the_same_everywhere(task):
    """The order on disk is TFDS's; a release that changes it would change which batches a seed sees."""
    assert task.fingerprint == "5c3684deee62b8783fff78c244337de2630a359501b17f9df2ced0d5983a427e"


def test_validation_is_a_tenth_of_every_intent_and_shares_no_text_with_train(task):
    train, valid = task.splits["train"], task.splits["valid"]
    assert not {bare(text) for text in train.texts} & {bare(text) for text in valid.texts}
    held_out = np.bincount(valid.labels, minlength=77)
    np.testing.assert_allclose(held_out, (held_out + np.bincount(train.labels)) / 10, atol=1.0)


def test_validation_split_does_not_depend_on_the_order_of_rows(task, raw):
    lines = rows_of(raw / "train.csv")
    with (raw / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *reversed(lines)])
    assert named(load_task("banking77", raw), "valid") == named(task, "valid")


def test_changed_raw_files_are_prepared_anew(task, raw):
    path = raw / "test.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("How do I locate my card?", "Where is it?"), "utf-8")
    changed = load_task("banking77", raw)
    assert "Where is it?" in changed.splits["test"].texts
    assert changed.fingerprint != task.fingerprint
    assert load_task("banking77").fingerprint == task.fingerprint


def test_unusable_tasks_are_refused_by_name(cache, raw):
    with pytest.raises(UserError, match=r"task\.name='banking'.*use addsub, .*banking77"):
        load_task("banking")
    with pytest.raises(UserError, match=r"task\.data_dir='.*/nowhere'.*expected a folder with train\.csv, test\.csv"):
        load_task("banking77", raw / "nowhere")
    (raw / "test.csv").unlink()
    with pytest.raises(UserError, match=r"task\.data_dir=.* has no test\.csv"):
        load_task("banking77", str(raw))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("test.csv", "text,category\nWhy?,because\n", r"test\.csv, line 2.*because"),
        (
            "test.csv",
            "question,answer\nWhy?,age_limit\n",
            r"test\.csv, line 1: the header .*question.*has no column text, category",
        ),
        ("categories.json", '["one", "one"]', "list of two or more different names"),
        ("categories.json", "age_limit", "list of two or more different names"),
    ],
)
def test_spoilt_files_are_refused_by_name(cache, raw, name, content, complaint):
    (raw / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        load_task("banking77", raw)


LOAD = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"{event} {args}")
sys.addaudithook(refuse)
from lora_jax.data.tasks import load_task
print(load_task("banking77").fingerprint)
print(sorted({"tensorflow", "jax"} & set(sys.modules)))
"""


def test_processes_that_prepare_at_once_agree_without_network_tensorflow_or_jax(task, tmp_path):
    """An importable package called tensorflow stands in for an installed one, and must not be touched."""
    (tmp_path / "tensorflow.py").touch()
    environment = {
        **os.environ,
        "LORA_JAX_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
    }
    command = [sys.executable, "-c", LOAD]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=120)[0].split("\n")[:2] == [task.fingerprint, "[]"]
        assert process.returncode == 0
    assert not list((tmp_path / "cache").rglob("*incomplete*"))


def test_a_process_that_prepares_last_uses_the_copy_that_is_there(cache, raw):
    from lora_jax.data.tasks.banking77.builder import Banking77

    (raw / "test.csv").write_text("text,category\nWhy?,age_limit\n")

    class Slow(Banking77, skip_registration=True):
        name = "banking77"

        def _split_generators(self, dl_manager):
            open_builder(Banking77, raw, banking77.FILES)
            return super()._split_generators(dl_manager)

    builder = open_builder(Slow, raw, banking77.FILES)
    assert builder.info.splits["test"].num_examples == 1
    assert builder.as_data_source("test")[0]["text"] == b"Why?"
