"""``task.validation=test``: all training examples are trained on, and the test split validates."""

import collections
import csv
from pathlib import Path

import numpy as np
import pytest
from helpers.custom_data import GENERATION, ROWS, TEXT_LABEL, as_csv
from helpers.glue_files import write_glue

import lora_jax
from lora_jax.config import TaskConfig
from lora_jax.data.chats import Chats, Message
from lora_jax.data.examples import Corpus, Examples
from lora_jax.data.images import Images
from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import banking77, load_data
from lora_jax.data.unlabelled import UnlabelledTexts
from lora_jax.errors import UserError
from lora_jax.records import read_run
from lora_jax.report import load_rows
from lora_jax.report.compare import finding

pytestmark = pytest.mark.usefixtures("private_cache")

LABELS = np.arange(3, dtype=np.int32)
WORDS = ["a", "b", "c"]
GLUE_FILES = {
    "cola": [(f"Dog {i} sleeps.", str(i % 2)) for i in range(60)],
    "mrpc": [(f"Dog {i}.", f"Cat {i}.", str(i % 2)) for i in range(60)],
    "stsb": [(f"Dog {i}.", f"Cat {i}.", f"{i % 5}.500") for i in range(60)],
}


def load(validation: str, name: str, data_dir: Path | None = None, **columns: str) -> TaskData:
    settings = {"name": name, "steps": 1, "data_dir": data_dir and str(data_dir), "validation": validation, **columns}
    return load_data(TaskConfig.model_validate(settings))


def rows_of(split: Examples) -> collections.Counter:
    return collections.Counter(zip(*split.content(), strict=True))


def assert_all_is_trained_on(held_out: TaskData, data: TaskData) -> None:
    train, valid, test = (held_out.splits[name] for name in ("train", "valid", "test"))
    assert rows_of(data.splits["train"]) == rows_of(train) + rows_of(valid)
    assert data.splits["valid"].content() == data.splits["test"].content() == test.content()
    assert data.fingerprint != held_out.fingerprint and data.labels == held_out.labels


@pytest.mark.parametrize("task", GLUE_FILES)
def test_glues_whole_training_set_is_trained_on(tmp_path, task):
    folder = write_glue(task, tmp_path / "raw", GLUE_FILES[task], GLUE_FILES[task][:10])
    held_out, data = load("held_out", task, folder), load("test", task, folder)
    assert_all_is_trained_on(held_out, data)
    train = rows_of(data.splits["train"])
    assert len(train) == train.total() == 60
    # The prepared copy serves both.
    assert load("held_out", task, folder).fingerprint == held_out.fingerprint
    assert load("test", task, folder).fingerprint == data.fingerprint


def test_banking77_whole_training_set_is_trained_on():
    data = load("test", "banking77")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10_003, "valid": 3080, "test": 3080}
    with (Path(banking77.__file__).parent / "train.csv").open(encoding="utf-8", newline="") as file:
        expected = collections.Counter(row["text"] for row in csv.DictReader(file))
    assert collections.Counter(data.splits["train"].texts) == expected
    assert_all_is_trained_on(load("held_out", "banking77"), data)


@pytest.mark.parametrize("columns", [TEXT_LABEL, GENERATION])
def test_a_validation_file_of_yours_is_trained_on(tmp_path, columns, caplog):
    files = {"train": ROWS[:30], "valid": ROWS[30:], "test": [ROWS[30], {**ROWS[1], "question": "New?"}]}
    for name, rows in files.items():
        (tmp_path / f"{name}.csv").write_bytes(as_csv(rows))
    held_out = load("held_out", "csv", tmp_path, **columns)
    assert "also in the train split" not in caplog.text
    assert_all_is_trained_on(held_out, load("test", "csv", tmp_path, **columns))
    assert "1 of 2 test examples are also in the train split" in caplog.text


@pytest.mark.parametrize(
    "split",
    [
        Examples(WORDS, LABELS),
        Examples(WORDS, LABELS.astype(np.float32), ["x", "y", "z"], negatives=["u", "v", "w"]),
        Examples(WORDS, ["x", "y", "z"], choices=[("x", "y"), ("y", "z"), ("z", "x")]),
        Images(np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5, 1), LABELS),
        Chats([(Message("user", word), Message("assistant", word)) for word in WORDS]),
        TaggedWords([["a"], ["b", "c"], ["d"]], [[0], [1, 2], [0]]),
        UnlabelledTexts(WORDS),
    ],
    ids=lambda split: type(split).__name__,
)
def test_splits_of_every_kind_are_joined_in_order(split):
    joined = split.take([0, 1]).join(split.take([2]))
    assert type(joined) is type(split) and joined.content() == split.content()
    assert np.asarray(joined.labels).dtype == np.asarray(split.labels).dtype


def test_examples_of_other_columns_are_not_joined():
    with pytest.raises(ValueError, match="6 texts, but 3 second texts"):
        Examples(WORDS, LABELS).join(Examples(WORDS, LABELS, WORDS))


@pytest.mark.parametrize("task", ["banking77_retrieval", "nli_triplets"])
def test_a_task_of_queries_and_documents_is_refused_before_its_files_are_read(tmp_path, task):
    with pytest.raises(UserError, match=rf"task\.validation=test: must be held_out for task={task}, whose"):
        load("test", task, tmp_path / "nowhere")


def test_splits_with_documents_are_not_joined():
    data = TaskData((), dict.fromkeys(("train", "valid", "test"), Examples(WORDS, LABELS)), {"valid": Corpus([], [])})
    with pytest.raises(ValueError, match="corpora"):
        data.validate_on_test()


def test_the_best_evaluation_has_the_scores_of_the_test(tiny_model, tmp_path):
    folder = write_glue("cola", tmp_path / "raw", GLUE_FILES["cola"], GLUE_FILES["cola"][:40])
    small = [f"model.source={tiny_model}", "wandb.mode=disabled", "batch=8", "task.buckets=[16]", "rank=2", "lr=3e-2"]
    settings = ["task=cola", f"task.data_dir={folder}", "task.eval_examples=30", "steps=6", "eval_every=2"]
    points = [
        lora_jax.Point(
            f"task.validation={validation}",
            tmp_path / "sweep" / validation,
            lora_jax.compose_run(*small, *settings, f"task.validation={validation}"),
        )
        for validation in ("held_out", "test")
    ]
    held_out, summary = lora_jax.run_points(points, home=tmp_path / "sweep", group="validation")
    assert (held_out.status, summary.status) == ("finished", "finished")
    best = {name: value for name, value in summary.valid_best.items() if name != "step"}
    assert best == pytest.approx(dict(summary.test), rel=1e-5)
    runs = [read_run(point.folder) for point in points]
    assert [run.data.examples for run in runs] == [
        {"train": 54, "valid": 6, "test": 40},
        {"train": 60, "valid": 40, "test": 40},
    ]
    assert runs[0].data.fingerprint != runs[1].data.fingerprint
    rows = load_rows(tmp_path / "sweep")
    sentence = "With task.validation=test, the best evaluation of {} was chosen on the test split, so test scores are"
    assert sentence.format("task.validation=test") in finding(rows)
    assert sentence.format("each run") in finding([row for row in rows if row.name == "task.validation=test"])
    assert "chosen on the test split" not in finding([row for row in rows if row.name == "task.validation=held_out"])
