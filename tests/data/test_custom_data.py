"""The user's own data: every format and kind, the splits, and 50 malformed inputs, each refused in one line."""

import csv
import gzip
import io
import json
import math
import os
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.command_line import CommandLine, read
from pyarrow import parquet

from lora_jax.config import TaskConfig
from lora_jax.data.chats import Message
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import find_task, load_data, load_task
from lora_jax.errors import UserError
from lora_jax.metrics import METRICS

TEXT_LABEL = {"text": "question", "label": "intent"}
CHAT = {"kind": "chat", "messages": "messages"}
REGRESSION = {**TEXT_LABEL, "kind": "regression"}
GENERATION = {**TEXT_LABEL, "kind": "generation"}
ROWS = [{"question": f"How {i}?", "intent": ("ask", "buy")[i % 2]} for i in range(40)]
NUMBERS = [{"question": f"How {i}?", "intent": i / 2} for i in range(40)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))


def settings(name: str, data_dir: Path | None, **columns: str) -> TaskConfig:
    return TaskConfig.model_validate({"name": name, "steps": 1, "data_dir": data_dir and str(data_dir), **columns})


def load(name: str, data_dir: Path | None, **columns: str) -> TaskData:
    return load_data(settings(name, data_dir, **columns))


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def features_of(names: Sequence[str]) -> dict[str, Any]:
    return {"question": {"dtype": "string", "_type": "Value"}, "intent": {"names": list(names), "_type": "ClassLabel"}}


def as_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> pa.Table:
    """A table as `datasets` makes it: classes are numbers, and their names are in the schema's metadata."""
    if names is None:
        return pa.Table.from_pylist(list(rows) or list(ROWS)).slice(0, len(rows))
    table = pa.Table.from_pylist([{**row, "intent": list(names).index(row["intent"])} for row in rows])
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features_of(names)}})})


def as_parquet(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> bytes:
    out = io.BytesIO()
    parquet.write_table(as_table(rows, names), out)
    return out.getvalue()


def as_arrow(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, *, indexed: bool = False) -> bytes:
    out, table = io.BytesIO(), as_table(rows, names)
    with (pa.ipc.new_file if indexed else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


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


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


CHATS = [{"messages": turns(f"Hi {i}", f"Hello {i}", "Bye", f"Goodbye {i}")} for i in range(30)]


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


# ---- what is refused


def broken(row: int, **values: Any) -> list[dict[str, Any]]:
    """ROWS with other values in one row; a value of None is left out."""
    changed = {**ROWS[row], **values}
    return [*ROWS[:row], {key: value for key, value in changed.items() if value is not None}, *ROWS[row + 1 :]]


def chats_with(*messages: Any) -> bytes:
    return as_jsonl([*CHATS[:2], {"messages": list(messages)}])


HEADER = b"question,intent\n"
USER = {"role": "user", "content": "Hi"}
# The task, its files, its settings, and what the error says.
MALFORMED: dict[str, tuple[str, dict[str, bytes], dict[str, str], str]] = {
    "a missing column": (
        *("csv", {"train.csv": as_csv(ROWS)}, {**TEXT_LABEL, "text": "query"}),
        r"^task\.text='query': .*train\.csv has no such column; its columns are question, intent$",
    ),
    "no setting": (
        *("csv", {"train.csv": as_csv(ROWS)}, {"text": "question"}),
        r"^task\.label is missing: task\.kind=classification needs it; the columns of .*train\.csv are question, i",
    ),
    "a column twice": (
        *("csv", {"train.csv": b"question,intent,question\na,b,c\n"}, TEXT_LABEL),
        r"train\.csv, line 1: the header 'question,intent,question' has the column 'question' twice",
    ),
    "a ragged line": (
        *("csv", {"train.csv": HEADER + b"a,x\nb,y,z\n"}, TEXT_LABEL),
        r"train\.csv, line 3: 3 columns, 'b,y,z'; expected 2: question,intent",
    ),
    "a ragged line of tabs": (
        *("csv", {"train.tsv": b"question\tintent\na\n"}, TEXT_LABEL),
        r"train\.tsv, line 2: 1 columns, 'a'; expected 2: question,intent",
    ),
    "latin-1": (
        *("csv", {"train.csv": HEADER + "How?,ask\ncafé,buy\n".encode("latin-1")}, TEXT_LABEL),
        r"train\.csv, line 3, byte 4: b'\\xe9,bu' is not UTF-8",
    ),
    "UTF-16": (
        *("csv", {"train.csv": as_csv(ROWS).decode().encode("utf-16")}, TEXT_LABEL),
        r"train\.csv, line 1, byte 1: b'\\xff\\xfeq\\x00' is not UTF-8",
    ),
    "UTF-16 without a mark": (
        *("jsonl", {"train.jsonl": as_jsonl(ROWS).decode().encode("utf-16-le")}, TEXT_LABEL),
        r"train\.jsonl, line 1, byte 2: has a NUL; expected UTF-8 text",
    ),
    "a NUL": (
        *("csv", {"train.csv": HEADER + b"a,x\nb\0,y\n"}, TEXT_LABEL),
        r"train\.csv, line 3, byte 2: has a NUL",
    ),
    "a class that train lacks": (
        *("csv", {"train.csv": as_csv(ROWS), "test.csv": HEADER + b"How?,ask\nWhy?,sell\n"}, TEXT_LABEL),
        r"test\.csv, line 3: intent='sell'; expected a class of the train split: \['ask', 'buy'\]",
    ),
    "an empty text": (
        *("csv", {"train.csv": as_csv(broken(2, question=" "))}, TEXT_LABEL),
        r"train\.csv, line 4: question=' '; expected a text",
    ),
    "a blank class": (
        *("csv", {"train.csv": as_csv(broken(2, intent=""))}, TEXT_LABEL),
        r"train\.csv, line 4: intent=''; expected a class",
    ),
    "a class of two lines": (
        *("csv", {"train.csv": as_csv(broken(2, intent="a\nb"))}, TEXT_LABEL),
        r"train\.csv, line 4: intent='a\\nb'; expected a class: a text of one line",
    ),
    "an id twice": (
        "csv",
        {"train.csv": b"id,question,intent\n1,a,x\n2,b,y\n", "test.csv": b"id,question,intent\n3,a,x\n2,c,y\n"},
        {**TEXT_LABEL, "id": "id"},
        r"test\.csv, line 3: id='2'; expected an id that is not also at .*train\.csv, line 3$",
    ),
    "an open quote": (
        *("csv", {"train.csv": HEADER + b'a,x\n"b,y\nc,x\n'}, TEXT_LABEL),
        r"train\.csv, line 3: unexpected end of data; expected closed quotes",
    ),
    "an open quote in a long file": (
        *("csv", {"train.csv": HEADER + b'a,x\n"b,y\n' + 20_000 * b"How is it?,x\n"}, TEXT_LABEL),
        r"train\.csv, line 3: field larger than field limit \(131072\); expected closed quotes",
    ),
    "no rows": (
        *("csv", {"train.csv": HEADER}, TEXT_LABEL),
        r"train\.csv has no rows; expected one or more of question, intent",
    ),
    "an empty file": ("csv", {"train.csv": b""}, TEXT_LABEL, r"train\.csv has no rows; expected one or more"),
    "an empty file of JSON": ("jsonl", {"train.jsonl": b"\n\n"}, TEXT_LABEL, r"train\.jsonl has no rows; expected one"),
    "no train file": (
        *("csv", {"test.csv": as_csv(ROWS), "notes.txt": b""}, TEXT_LABEL),
        r"^task\.data_dir='.*': it has no train split, but \['notes\.txt', 'test\.csv'\]; expected a folder with "
        r"train\.csv or train\.tsv, or with \.gz, or such a file$",
    ),
    "another format": (
        *("dataset", {"train.csv": as_csv(ROWS)}, TEXT_LABEL),
        r"it has no train split, but \['train\.csv'\]; expected a folder with train\.parquet or train\.arrow",
    ),
    "a comma file and a tab file": (
        *("csv", {"train.csv": as_csv(ROWS), "train.tsv": as_csv(ROWS, "\t")}, TEXT_LABEL),
        r"the train split has \['train\.csv', 'train\.tsv'\]; expected one of them",
    ),
    "two names of a split": (
        *("csv", {"train.csv": as_csv(ROWS), "dev.csv": as_csv(ROWS), "valid.csv": as_csv(ROWS)}, TEXT_LABEL),
        r"the validation split has \['dev\.csv', 'valid\.csv'\]; expected one of them",
    ),
    "two configurations": (
        *("dataset", {"en/train.parquet": as_parquet(ROWS), "fr/train.parquet": as_parquet(ROWS)}, TEXT_LABEL),
        r"the train split has \['en/train\.parquet', 'fr/train\.parquet'\]; expected one of them",
    ),
    "a missing part": (
        *("dataset", {"train-00001-of-00002.parquet": as_parquet(ROWS)}, TEXT_LABEL),
        r"the train split has \['train-00001-of-00002\.parquet'\]; expected all its 2 parts",
    ),
    "one class": (
        *("csv", {"train.csv": HEADER + b"a,x\nb,x\n"}, TEXT_LABEL),
        r"^task\.label='intent': every row of .*train\.csv has the class 'x'; expected two classes or more$",
    ),
    "too few rows to cut": (
        *("csv", {"train.csv": HEADER + b"a,x\nb,y\n"}, TEXT_LABEL),
        r"too few rows, the validation split has no example; expected one or more",
    ),
    "not JSON": (
        *("jsonl", {"train.jsonl": as_jsonl(ROWS) + b'{"question": "How?"\n'}, TEXT_LABEL),
        r"train\.jsonl, line 41, column 20: Expecting ',' delimiter; expected JSON",
    ),
    "JSON that is no object": (
        *("jsonl", {"train.jsonl": as_jsonl(ROWS) + b'["How?", "ask"]\n'}, TEXT_LABEL),
        r"train\.jsonl, line 41 holds \['How\?', 'ask'\]; expected an object",
    ),
    "a missing key": (
        *("jsonl", {"train.jsonl": as_jsonl(broken(4, intent=None))}, TEXT_LABEL),
        r"train\.jsonl, line 5: has no intent; expected a class",
    ),
    "a text of a wrong type": (
        *("jsonl", {"train.jsonl": as_jsonl(broken(4, question=["How?"]))}, TEXT_LABEL),
        r"train\.jsonl, line 5: question=\['How\?'\]; expected a text",
    ),
    "a class of a wrong type": (
        *("jsonl", {"train.jsonl": as_jsonl(broken(4, intent=1.5))}, TEXT_LABEL),
        r"train\.jsonl, line 5: intent=1\.5; expected a class: a text of one line, or a whole number",
    ),
    "a lone surrogate": (
        *("jsonl", {"train.jsonl": b'{"question": "\\ud800", "intent": "ask"}\n'}, TEXT_LABEL),
        r"train\.jsonl, line 1: question='\\ud800'; expected a text",
    ),
    "NaN in JSON": (
        *("jsonl", {"train.jsonl": as_jsonl([*NUMBERS, {"question": "a", "intent": math.nan}])}, REGRESSION),
        r"train\.jsonl, from line 41: NaN is no number in JSON; expected JSON",
    ),
    "NaN": (
        *("csv", {"train.csv": as_csv([*NUMBERS, {"question": "a", "intent": "nan"}])}, REGRESSION),
        r"train\.csv, line 42: intent='nan'; expected a finite number",
    ),
    "an infinite number": (
        *("csv", {"train.csv": as_csv([*NUMBERS, {"question": "a", "intent": "-inf"}])}, REGRESSION),
        r"train\.csv, line 42: intent='-inf'; expected a finite number",
    ),
    "a number beyond float32": (
        *("jsonl", {"train.jsonl": as_jsonl([*NUMBERS, {"question": "a", "intent": 10**400}])}, REGRESSION),
        r"train\.jsonl, line 41: intent=.*; expected a finite number, from -3\.4e\+38 to 3\.4e\+38",
    ),
    "a text for a number": (
        *("csv", {"train.csv": as_csv(ROWS)}, REGRESSION),
        r"train\.csv, line 2: intent='ask'; expected a finite number",
    ),
    "nothing to generate": (
        *("csv", {"train.csv": as_csv(broken(4, intent=" "))}, GENERATION),
        r"train\.csv, line 6: intent=' '; expected a text",
    ),
    "no turn of the assistant": (
        *("jsonl", {"train.jsonl": chats_with(USER)}, CHAT),
        r"train\.jsonl, line 3: messages=.*; expected a message with the role assistant or more",
    ),
    "an unknown role": (
        *("jsonl", {"train.jsonl": chats_with(USER, {"role": "bot", "content": "Hello"})}, CHAT),
        r"train\.jsonl, line 3: messages\[1\]\.role='bot'; expected system, user, assistant",
    ),
    "a role that is a list": (
        *("jsonl", {"train.jsonl": chats_with(USER, {"role": [], "content": "Hello"})}, CHAT),
        r"train\.jsonl, line 3: messages\[1\]\.role=\[\]; expected system, user, assistant",
    ),
    "a message without content": (
        *("jsonl", {"train.jsonl": chats_with(USER, {"role": "assistant"})}, CHAT),
        r"train\.jsonl, line 3: messages\[1\]\.content=None; expected a text",
    ),
    "a message that is a text": (
        *("jsonl", {"train.jsonl": chats_with("Hi")}, CHAT),
        r"train\.jsonl, line 3: messages\[0\]='Hi'; expected \{\"role\"",
    ),
    "no messages": (
        *("jsonl", {"train.jsonl": chats_with()}, CHAT),
        r"train\.jsonl, line 3: messages=\[\]; expected a list of one or more",
    ),
    "no Parquet": (
        *("dataset", {"train.parquet": as_csv(ROWS)}, TEXT_LABEL),
        r"train\.parquet: .*; expected a whole \.parquet file",
    ),
    "a cut Parquet file": (
        *("dataset", {"train.parquet": as_parquet(ROWS)[:-40]}, TEXT_LABEL),
        r"train\.parquet: .*; expected a whole \.parquet file",
    ),
    "a cut Arrow file": (
        *("dataset", {"train.arrow": as_arrow(ROWS)[:-150]}, TEXT_LABEL),
        r"train\.arrow: .*; expected a whole \.arrow file",
    ),
    "an empty Arrow file": ("dataset", {"train.arrow": b""}, TEXT_LABEL, r"train\.arrow: .*; expected a whole \.arrow"),
    "a data set without the column": (
        *("dataset", {"train.parquet": as_parquet(ROWS)}, {**TEXT_LABEL, "label": "label"}),
        r"^task\.label='label': .*train\.parquet has no such column; its columns are question, intent$",
    ),
    "a data set without rows": (
        *("dataset", {"train.parquet": as_parquet(ROWS[:0])}, TEXT_LABEL),
        r"train\.parquet has no rows; expected one or more of question, intent",
    ),
    "a data set with a hidden class": (
        "dataset",
        {
            "train.parquet": as_parquet(ROWS, ["ask", "buy"]),
            "test.parquet": as_parquet([{"question": "a", "intent": -1}]),
        },
        TEXT_LABEL,
        r"test\.parquet, row 1: intent=-1; expected a class of the train split: \['ask', 'buy'\]",
    ),
    "classes of the same name": (
        *("dataset", {"train.parquet": as_parquet(ROWS, ["ask", "buy", "ask"])}, TEXT_LABEL),
        r"train\.parquet, huggingface: intent has the classes \('ask', 'buy', 'ask'\); expected different names",
    ),
    "a dataset_info.json that is none": (
        *("dataset", {"train.parquet": as_parquet(ROWS), "dataset_info.json": b"[]"}, TEXT_LABEL),
        r"dataset_info\.json: TypeError, .*; expected the features of a data set",
    ),
    "a damaged gzip file": (
        *("csv", {"train.csv.gz": gzip.compress(as_csv(ROWS))[:-10]}, TEXT_LABEL),
        r"train\.csv\.gz is not a readable gzip file \(.*\); expected one",
    ),
    "no gzip file": (
        *("jsonl", {"train.jsonl.gz": as_jsonl(ROWS)}, TEXT_LABEL),
        r"train\.jsonl\.gz is not a readable gzip file \(Not a gzipped file",
    ),
    "a column of conversations in CSV": (
        *("csv", {"train.csv": as_csv(ROWS)}, {**TEXT_LABEL, "messages": "messages"}),
        r"^task\.messages='messages': task\.kind=classification does not read it; use task\.text, task\.label, ",
    ),
    "conversations in CSV": (
        *("csv", {"train.csv": as_csv(ROWS)}, CHAT),
        r"^task\.kind=chat: task=csv has no lists of messages in its columns; use task=jsonl or task=dataset$",
    ),
    "classes of conversations": (
        *("jsonl", {"train.jsonl": as_jsonl(CHATS)}, {**CHAT, "label": "intent"}),
        r"^task\.label='intent': task\.kind=chat does not read it; use task\.messages, task\.id$",
    ),
    "pairs to generate from": (
        *("csv", {"train.csv": as_csv(ROWS)}, {**GENERATION, "pair": "question"}),
        r"^task\.pair='question': task\.kind=generation does not read it; use task\.text, task\.label, task\.id$",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_data_is_refused_in_one_line(case, tmp_path):
    name, files, columns, message = MALFORMED[case]
    folder = write(tmp_path / "raw", files)
    with pytest.raises(UserError, match=message) as error:
        load(name, folder, **columns)
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_other_things_than_files_are_refused(tmp_path):
    for name, folder, message in (
        ("csv", None, r"^task\.data_dir is missing: task=csv reads your own data; give a folder with train\.csv"),
        ("csv", tmp_path / "none", r"none': there is no such folder or file; expected a folder with train\.csv"),
        (
            "csv",
            write(tmp_path, {"data.txt": b"a"}) / "data.txt",
            r"data\.txt': the file is called otherwise; expected",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load(name, folder, **TEXT_LABEL)
    (tmp_path / "folder/train.csv").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.csv is a folder; expected a file"):
        load("csv", tmp_path / "folder", **TEXT_LABEL)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/train.csv")
    for path in (tmp_path / "pipe", tmp_path / "pipe/train.csv"):
        with pytest.raises(UserError, match=r"train\.csv is not a regular file; expected one"):
            load("csv", path, **TEXT_LABEL)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    folder = write(tmp_path / "raw", {"train.csv": as_csv(ROWS)})
    (folder / "train.csv").chmod(0)
    with pytest.raises(UserError, match=r"train\.csv cannot be read: Permission denied"):
        load("csv", folder, **TEXT_LABEL)


@pytest.mark.parametrize("name, file", [("csv", "train.csv"), ("jsonl", "train.jsonl"), ("csv", "train.tsv")])
def test_a_line_of_a_gigabyte_is_never_in_memory_as_a_whole(name, file, tmp_path):
    folder = write(tmp_path / "raw", {file: b"question"})
    with (folder / file).open("r+b") as large:
        large.truncate(2**30)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"{file}, line 1: has more than 16777216 bytes; expected at most so many"):
            load(name, folder, **TEXT_LABEL)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_a_file_beyond_the_largest_is_refused(tmp_path):
    folder = write(tmp_path / "raw", {"train.csv": as_csv(ROWS)})
    with (folder / "train.csv").open("r+b") as large:
        large.truncate(2**32 + 1)
    with pytest.raises(UserError, match=r"train\.csv has 4294967297 bytes; expected at most 4294967296"):
        load("csv", folder, **TEXT_LABEL)


def test_an_unknown_kind_is_refused(configure):
    with pytest.raises(
        UserError, match=r"task\.kind='ranking': must be 'classification', 'regression', 'generation' or"
    ):
        configure(task={"name": "csv", "steps": 1, "kind": "ranking"})


@pytest.mark.parametrize("setting, value", [("kind", "chat"), *((key, "x") for key in ("text", "pair", "label", "id"))])
def test_other_tasks_have_their_own_columns(setting, value):
    config = TaskConfig.model_validate({"name": "cola", "steps": 1, setting: value})
    with pytest.raises(UserError, match=rf"^task\.{setting}='{value}': task=cola has its own columns; use task=csv or"):
        find_task(config)


@pytest.mark.parametrize("name", ["csv", "jsonl", "dataset"])
def test_a_task_without_settings_asks_for_them(name):
    with pytest.raises(UserError, match=r"^task\.data_dir is missing"):
        load_task(name)


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
