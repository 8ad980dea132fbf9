"""CoLA from files in GLUE's format, a few sentences made for this test."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from helpers.command_line import CommandLine, read, records

from lora_jax.data.tasks import TASKS, load_task
from lora_jax.errors import UserError

NOUNS = ("dog", "cat", "bird", "child", "author", "river", "moon", "king", "bank", "letter")


def line(noun: str, good: bool, i: int) -> str:
    return f"x{i}\t{int(good)}\t{'' if good else '*'}\t" + (
        f'A "{noun}" sleeps.' if good else f"Sleeps {noun} a the {i}."
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cola")
    train = [line(f"{noun} {i}", good, i) for i in range(10) for noun in NOUNS for good in (True, False)]
    (folder / "train.tsv").write_text("\n".join(train) + "\n", encoding="utf-8")
    (folder / "dev.tsv").write_text("\n".join(line(noun, i % 3 > 0, i) for i, noun in enumerate(NOUNS)) + "\n")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))


def test_the_development_set_is_the_test_split_and_a_tenth_of_each_label_validates(folder):
    data = load_task("cola", folder)
    assert data.labels == ("unacceptable", "acceptable")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 180, "valid": 20, "test": 10}
    assert np.bincount(data.splits["valid"].labels).tolist() == [10, 10]
    assert np.bincount(data.splits["test"].labels).tolist() == [4, 6]
    assert not set(data.splits["valid"].texts) & set(data.splits["train"].texts)
    assert 'A "cat" sleeps.' in data.splits["test"].texts  # quotes are letters like any other


def test_glues_zip_file_is_read_too(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "CoLA.zip", "w") as archive:
        for name in ("train.tsv", "dev.tsv"):
            archive.write(folder / name, f"CoLA/{name}")
    assert load_task("cola", tmp_path).fingerprint == load_task("cola", folder).fingerprint


def test_a_malformed_line_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    with (broken / "dev.tsv").open("a") as file:
        file.write("gj04\t2\t\tA label that is none.\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 11: label='2'; expected 0 or 1"):
        load_task("cola", broken)


def test_matthews_correlation_selects_and_heads_the_table(command: CommandLine, folder, tmp_path):
    assert TASKS["cola"].select == TASKS["cola"].metric == "matthews"
    done = command.sweep(tmp_path / "sweep", "task=cola", f"task.data_dir={folder}", "rank=2", "baseline=none")
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    summary = read(run / "summary.json")
    assert (summary["metric"], summary["select"]) == ("matthews", "matthews")
    assert set(summary["test"]) == {"matthews", "accuracy", "loss"}
    scored = [record for record in records(run) if "valid/matthews" in record]
    assert scored and all(-1 <= record["valid/matthews"] <= 1 for record in scored)
    assert "test matthews" in done.stdout or "test Matthews" in done.stdout, json.dumps(done.stdout)
