"""The user's own data: 50 malformed inputs, each refused in one line, in seconds."""

import gzip
import math
import os
import tracemalloc
from typing import Any

import pytest
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
    load,
    write,
)

from lora_jax.config import TaskConfig
from lora_jax.data.tasks import find_task, load_task
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")


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
