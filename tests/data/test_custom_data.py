"""The user's own data: every format and kind, the splits, how a run is scored."""

import gzip
import io
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from helpers.command_line import CommandLine, read
from helpers.custom_data import (
    CHAT,
    CHATS,
    GENERATION,
    NUMBERS,
    REGRESSION,
    ROWS,
    TEXT_LABEL,
    as_arrow,
    as_csv,
    as_jsonl,
    as_parquet,
    as_table,
    features_of,
    load,
    turns,
    write,
)

from lora_jax.config import TaskConfig
from lora_jax.data.chats import Message
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import find_task
from lora_jax.metrics import METRICS

pytestmark = pytest.mark.usefixtures("private_cache")


# ---- what is read

FORMATS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "train.csv": ("csv", as_csv),
    "train.csv.gz": ("csv", lambda rows: gzip.compress(as_csv(rows))),
    "train.tsv": ("csv", lambda rows: as_csv(rows, "\t")),
    "train.jsonl": ("jsonl", as_jsonl),
    "train.jsonl.gz": ("jsonl", lambda rows: gzip.compress(as_jsonl(rows))),
    "train.parquet": ("dataset", as_parquet),
    "train.arrow": ("dataset", as_arrow),
    "data/train-00000-of-00001.parquet": ("dataset", as_parquet),
    "train/data-00000-of-00001.arrow": ("dataset", lambda rows: as_arrow(rows, indexed=True)),
    "data-00000-of-00001.arrow": ("dataset", as_arrow),
}


@pytest.mark.parametrize("file", FORMATS)
def test_every_format_gives_the_same_examples(file, tmp_path):
    name, encode = FORMATS[file]
    expected = load("csv", write(tmp_path / "csv", {"train.csv": as_csv(ROWS)}), **TEXT_LABEL)
    folder = write(tmp_path / "raw", {file: encode(ROWS)})
    data = load(name, folder, **TEXT_LABEL)
    assert data.labels == ("ask", "buy") and data.fingerprint == expected.fingerprint
    if "/" not in file:
        assert load(name, folder / file, **TEXT_LABEL).fingerprint == data.fingerprint


@pytest.mark.parametrize("file", FORMATS)
def test_numbers_and_texts_to_generate(file, tmp_path):
    name, encode = FORMATS[file]
    folder = write(tmp_path / "raw", {file: encode(NUMBERS)})
    train = load(name, folder, **REGRESSION).splits["train"]
    assert train.labels.dtype == np.float32 and train.pairs is None
    assert dict(zip(train.texts, train.labels.tolist(), strict=True)).items() <= {
        (row["question"], row["intent"]) for row in NUMBERS
    }
    folder = write(tmp_path / "texts", {file: encode(ROWS)})
    splits = load(name, folder, **GENERATION).splits
    written = [pair for split in splits.values() for pair in zip(split.texts, split.labels, strict=True)]
    assert sorted(written) == sorted((row["question"], row["intent"]) for row in ROWS)


@pytest.mark.parametrize("file", [file for file, (name, _) in FORMATS.items() if name != "csv"])
def test_conversations(file, tmp_path):
    name, encode = FORMATS[file]
    splits = load(name, write(tmp_path / "raw", {file: encode(CHATS)}), **CHAT).splits
    assert {split: len(chats) for split, chats in splits.items()} == {"train": 24, "valid": 3, "test": 3}
    chat = splits["train"].messages[0]
    assert chat[0] == Message("user", "Hi 0") and splits["train"].labels[0] == "Goodbye 0"


def test_pairs_have_two_texts(tmp_path):
    rows = [{**row, "answer": f"So {i}."} for i, row in enumerate(ROWS)]
    folder = write(tmp_path / "raw", {"train.csv": as_csv(rows)})
    train = load("csv", folder, **TEXT_LABEL, pair="answer").splits["train"]
    assert set(zip(train.texts, train.pairs, strict=True)) <= {(row["question"], row["answer"]) for row in rows}


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "in dataset_info.json"])
def test_a_data_set_names_its_classes_in_its_own_order(beside, tmp_path):
    names = ["buy", "ask", "never"]  # a class that no example has is left out
    content = as_arrow(ROWS, names)
    if beside:
        table = as_table(ROWS, names).replace_schema_metadata(None)
        out = io.BytesIO()
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        content = out.getvalue()
    files = {"train/data-00000-of-00001.arrow": content}
    if beside:
        files["train/dataset_info.json"] = json.dumps({"features": features_of(names)}).encode()
    data = load("dataset", write(tmp_path / "raw", files), **TEXT_LABEL)
    assert data.labels == ("buy", "ask")
    train = data.splits["train"]
    named = {text: data.labels[label] for text, label in zip(train.texts, train.labels.tolist(), strict=True)}
    assert named.items() <= {(row["question"], row["intent"]) for row in ROWS}
    if beside:
        write(tmp_path / "raw", {"train/dataset_info.json": json.dumps({"features": features_of("xyz")}).encode()})
        assert load("dataset", tmp_path / "raw", **TEXT_LABEL).labels == ("x", "y")


def test_classes_may_be_whole_numbers_or_truth_values(tmp_path):
    for values, expected in (((0, 1), ("0", "1")), ((True, False), ("false", "true"))):
        rows = [{"question": f"How {i}?", "intent": values[i % 2]} for i in range(40)]
        folder = write(tmp_path / str(expected), {"train.jsonl": as_jsonl(rows)})
        assert load("jsonl", folder, **TEXT_LABEL).labels == expected


def test_parts_of_a_split_are_joined_in_order(tmp_path):
    parts = {f"data/train-{i:05}-of-00002.parquet": as_parquet(ROWS[20 * i : 20 * i + 20]) for i in range(2)}
    whole = load("dataset", write(tmp_path / "whole", {"train.parquet": as_parquet(ROWS)}), **TEXT_LABEL)
    assert load("dataset", write(tmp_path / "raw", parts), **TEXT_LABEL).fingerprint == whole.fingerprint


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf%s", b"%s\n\n"], ids=["byte order mark", "blank lines"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=repr)
def test_line_ends_and_marks_of_other_systems(content, end, tmp_path):
    expected = load("csv", write(tmp_path / "csv", {"train.csv": as_csv(ROWS)}), **TEXT_LABEL)
    written = (content % as_csv(ROWS)).replace(b"\n", end)
    assert (
        load("csv", write(tmp_path / "raw", {"train.csv": written}), **TEXT_LABEL).fingerprint == expected.fingerprint
    )


def test_quoted_texts_of_several_lines(tmp_path):
    rows = [{**row, "question": f'{row["question"]} "Yes",\r\nhe said.\n'} for row in ROWS]
    train = load("csv", write(tmp_path / "raw", {"train.csv": as_csv(rows)}), **TEXT_LABEL).splits["train"]
    assert set(train.texts) <= {row["question"] for row in rows}


# ---- splits


def texts_of(data: TaskData, split: str) -> set[str]:
    return set(data.splits[split].texts)


def test_missing_splits_are_cut_from_train_by_a_fixed_rule(tmp_path):
    rows = [{"question": f"How {i}?", "intent": ("ask", "buy", "buy", "buy")[i % 4]} for i in range(400)]
    for order, folder in ((rows, "a"), (rows[::-1], "b")):
        write(tmp_path / folder, {"train.csv": as_csv(order)})
    first, second = (load("csv", tmp_path / folder, **TEXT_LABEL) for folder in ("a", "b"))
    parts = [texts_of(first, split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [324, 40, 36] and len(set.union(*parts)) == 400
    # The rule depends on the texts, not on their order.
    assert parts == [texts_of(second, split) for split in ("train", "valid", "test")]
    assert np.bincount(first.splits["valid"].labels).tolist() == [10, 30]
    assert np.bincount(first.splits["test"].labels).tolist() == [9, 27]
    assert load("csv", tmp_path / "a", **TEXT_LABEL).fingerprint == first.fingerprint


def test_splits_with_files_are_as_they_are(tmp_path):
    held = {"validation.csv": "Is it", "valid.csv": "Is it", "dev.csv": "Is it", "test.csv": "Was it"}
    for file, text in held.items():
        rows = [{"question": f"{text} {i}?", "intent": "buy"} for i in range(3)]
        folder = write(tmp_path / file, {"train.csv": as_csv(ROWS), file: as_csv(rows)})
        data = load("csv", folder, **TEXT_LABEL)
        given, cut = ("test", "valid") if file == "test.csv" else ("valid", "test")
        assert data.splits[given].texts == [row["question"] for row in rows]
        assert len(data.splits[cut]) == 4 and len(data.splits["train"]) == 36


def test_the_same_text_never_falls_on_two_sides(tmp_path):
    rows = [{"question": f"How {i // 4}?", "intent": f"answer {i}"} for i in range(200)]
    data = load("csv", write(tmp_path / "raw", {"train.csv": as_csv(rows)}), **GENERATION)
    parts = [texts_of(data, split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [40, 5, 5] and len(set.union(*parts)) == 50
    conversations = [{"messages": turns(f"Hi {i // 4}", f"Hello {i}")} for i in range(200)]
    splits = load("jsonl", write(tmp_path / "chats", {"train.jsonl": as_jsonl(conversations)}), **CHAT).splits
    openings = [{chat[0] for chat in splits[split].messages} for split in splits]
    assert sum(map(len, openings)) == len(set.union(*openings)) == 50


def test_examples_of_train_and_test_are_counted(tmp_path, caplog):
    other = {"question": "New?", "intent": "ask"}
    relabelled = {"question": ROWS[0]["question"], "intent": "buy"}
    files = {"train.csv": as_csv(ROWS), "test.csv": as_csv([ROWS[0], ROWS[1], relabelled, other])}
    folder = write(tmp_path / "raw", files)
    cut = load("csv", folder, **TEXT_LABEL)
    train = set(zip(cut.splits["train"].texts, cut.splits["train"].labels.tolist(), strict=True))
    expected = sum((row["question"], cut.labels.index(row["intent"])) in train for row in ROWS[:2])
    assert f"{expected} of 4 test examples are also in the train split" in caplog.text
    caplog.clear()
    load("csv", write(tmp_path / "clean", {"train.csv": as_csv(ROWS)}), **TEXT_LABEL)
    assert "also in the train split" not in caplog.text


def test_other_files_or_settings_are_prepared_anew(tmp_path):
    rows = [{**row, "other": row["intent"].upper()} for row in ROWS]
    folder = write(tmp_path / "raw", {"train.csv": as_csv(rows)})
    assert load("csv", folder, **TEXT_LABEL).labels == ("ask", "buy")
    assert load("csv", folder, text="question", label="other").labels == ("ASK", "BUY")
    held = [{**rows[0], "question": "Held?"}]
    for name in ("validation.csv", "test.csv"):  # the same bytes, in another part
        data = load("csv", write(tmp_path / name, {"train.csv": as_csv(rows), name: as_csv(held)}), **TEXT_LABEL)
        assert texts_of(data, "test" if name == "test.csv" else "valid") == {"Held?"}
    write(folder, {"train.csv": as_csv([{**row, "intent": row["other"]} for row in rows])})
    assert load("csv", folder, **TEXT_LABEL).labels == ("ASK", "BUY")


# ---- how a run is scored


@pytest.mark.parametrize(
    "kind, metric, select",
    [
        (None, "accuracy", "accuracy"),
        ("regression", "pearson", "pearson"),
        ("generation", "rougeL", "loss"),
        ("chat", "rougeL", "loss"),
    ],
)
def test_each_kind_has_its_metrics(kind, metric, select):
    task = find_task(TaskConfig.model_validate({"name": "jsonl", "steps": 1, "kind": kind}))
    assert (task.metric, task.select) == (metric, select)
    assert {metric, select} <= set(task.metrics) <= set(METRICS)


# ---- from the command line


@pytest.mark.smoke
def test_a_sweep_of_a_table(command: CommandLine, tmp_path):
    rows = [{"question": f"{('Why', 'How')[i % 2]} {i}?", "intent": ("why", "how")[i % 2]} for i in range(100)]
    folder = write(tmp_path / "raw", {"train.csv": as_csv(rows)})
    asked = ["task=csv", f"task.data_dir={folder}", "task.text=question", "task.label=intent", "rank=2,4"]
    done = command.sweep(tmp_path / "sweep", *asked, "baseline=none", "eval_every=2")
    assert done.returncode == 0, done.stderr
    for name in ("rank=2", "rank=4"):
        summary, run = (read(tmp_path / "sweep" / name / file) for file in ("summary.json", "run.json"))
        assert set(summary["test"]) == {"accuracy", "f1", "matthews", "loss"} and summary["metric"] == "accuracy"
        assert run["data"]["examples"] == {"train": 80, "valid": 10, "test": 10}
        assert (run["config"]["task"]["text"], run["config"]["task"]["label"]) == ("question", "intent")
    assert (tmp_path / "sweep/report/index.html").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["task.text=query", "task.label=intent"],
            "error: task.text='query': {file} has no such column; its columns are",
        ),
        (
            ["task.text=question"],
            "error: task.label is missing: task.kind=classification needs it; the columns of {file}",
        ),
        (
            ["task.kind=ranking"],
            "error: task.kind='ranking': must be 'classification', 'regression', 'generation' or 'ch",
        ),
    ],
    ids=["a column", "a setting", "a kind"],
)
def test_a_sweep_of_bad_settings_is_refused_in_one_line(command: CommandLine, tmp_path, overrides, message):
    folder = write(tmp_path / "raw", {"train.csv": as_csv(ROWS)})
    done = command.sweep(tmp_path / "sweep", "task=csv", f"task.data_dir={folder}", *overrides)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(message.format(file=folder / "train.csv"))
