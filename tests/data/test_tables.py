"""Raw files of text: what is read of them, and how what cannot be used is refused."""

import errno
import os

import pytest

from lora_jax.data import bounded
from lora_jax.data.tables import read_csv, read_labels, read_tsv
from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

COLUMNS = ("text", "label")
HEADER = b"text,label\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train.csv"


@pytest.mark.parametrize(
    "content",
    [
        b"text,label\nWhy?,a\n\nWhen?,b\n",
        b"\xef\xbb\xbftext,label\r\nWhy?,a\r\nWhen?,b",  # a byte order mark, and no newline at the end
        b'label,id,text\na,1,"Why?"\nb,2,"When?"\n',
    ],
)
def test_rows_are_read_by_the_names_of_their_columns(file, content):
    file.write_bytes(content)
    rows = read_csv(file, COLUMNS)
    assert [(row.text("text"), row.label("label", ("a", "b"), "a or b")) for row in rows] == [
        ("Why?", "a"),
        ("When?", "b"),
    ]


def test_text_is_kept_as_it_is(file):
    file.write_bytes('text,label\n"two\nlines, ""quoted""",a\n  Caf\u00e9\u2028 ,b\n'.encode())
    assert [row.text("text") for row in read_csv(file, COLUMNS)] == ['two\nlines, "quoted"', "  Caf\u00e9\u2028 "]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"train\.csv, line 1: the header '' has no column text, label; expected text,label"),
        (HEADER, r"train\.csv has no rows; expected one or more of text, label"),
        (b"text\nWhy?\n", r"line 1: the header 'text' has no column label"),
        (b"text,label,text\nWhy?,a,b\n", r"line 1: .* has a column twice"),
        (b"\xff\xfet\0e\0x\0t\0", r"byte 0: b'\\xff\\xfet\\x00' is not UTF-8 .*; expected UTF-8"),
        ("text,label\n".encode("utf-16-le"), r"line 1: has a NUL, byte 1; expected UTF-8 text"),
        (HEADER + "Caf\u00e9,a\n".encode("latin-1"), r"byte 14: b'\\xe9,a\\n' is not UTF-8"),
        (HEADER + b"Why?,a\nW\0y?,a\n", r"line 3: has a NUL, byte 19"),
        (HEADER + b"Why?,a\n" + b"x" * 200_000 + b",a\n", r"line 3: field larger than .*at most 131072 characters"),
        (HEADER + b'Why?,a\n"When?,b\nWho?,a\n', r"line 3: unexpected end of data; expected closed quotes"),
        (HEADER + b"Why, then?,a\n", r"line 2: 3 columns, 'Why, then\?,a'; expected 2: text, label"),
        (HEADER + b"Why?\n", r"line 2: 1 columns"),
    ],
)
def test_a_malformed_table_is_refused_by_file_and_line(file, content, complaint):
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"task\.data_dir: {file.parent}.*{complaint}") as refusal:
        read_csv(file, COLUMNS)
    assert len(str(refusal.value)) < 500


def test_values_are_checked_by_their_kind(file):
    file.write_bytes(HEADER + b" ,a\n2.5,nan\n,-inf\n1e999,x\n")
    blank, number, infinite, text = read_csv(file, COLUMNS)
    assert number.number("text") == 2.5
    with pytest.raises(UserError, match=r"line 2: text=' '; expected a text"):
        blank.text("text")
    with pytest.raises(UserError, match=r"line 2: label='a'; expected b or c"):
        blank.label("label", {"b", "c"}, "b or c")
    for row, column in ((number, "label"), (infinite, "label"), (text, "text"), (text, "label"), (infinite, "text")):
        with pytest.raises(UserError, match=rf"line \d: {column}=.*; expected a finite number"):
            row.number(column)


def test_columns_between_tabs_keep_their_quotes(file):
    file.write_bytes(b'x\t"1"\r\n"y\t0\r\n')
    assert [(row.text("text"), row.text("label")) for row in read_tsv(file, COLUMNS)] == [("x", '"1"'), ('"y', "0")]
    file.write_bytes(b"x\t1\ny\n")
    with pytest.raises(UserError, match=r"line 2: 1 columns, 'y'; expected 2: text, label"):
        read_tsv(file, COLUMNS)


@pytest.mark.parametrize(
    "content",
    [
        b'["one", "one"]',
        b'["one"]',
        b'{"one": 1, "two": 2}',
        b'"two"',
        b"3",
        b'["one", 2]',
        b'["one", null]',
        b'["one", ["two"]]',
        b'["one", ""]',
        b'["one", " two"]',
        b'["one", "t\\nwo"]',
        b'["one", "t\\rwo"]',
        b'["one", "\\ud800"]',
        b"[" * 100_000,
        b"[" + b"9" * 10_000 + b"]",
        b"",
    ],
)
def test_labels_that_are_no_list_of_names_are_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}: expected a JSON list of two or more different names"):
        read_labels(file)


def test_what_is_no_file_or_cannot_be_read_is_refused(file, tmp_path, monkeypatch):
    file.mkdir()
    with pytest.raises(UserError, match=rf"{file} is a folder; expected a file"):
        read_csv(file, COLUMNS)
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(UserError, match=rf"{file} is not a regular file"):
        read_csv(file, COLUMNS)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file} cannot be read: No such file"):
        read_csv(file, COLUMNS)
    with file.open("wb") as large:
        large.truncate(bounded.LARGEST + 1)
    with pytest.raises(UserError, match=rf"has {bounded.LARGEST + 1} bytes; expected at most {bounded.LARGEST}"):
        read_csv(file, COLUMNS)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(bounded.os, "open", refuse)
    with pytest.raises(UserError, match=rf"{file} cannot be read: Permission denied"):
        read_csv(file, COLUMNS)


@pytest.fixture
def banking(tmp_path, private_cache):
    folder = tmp_path / "banking"
    folder.mkdir()
    rows = "".join(f"Question {label}{i}?,{label}\n" for label in "ab" for i in range(5))
    (folder / "train.csv").write_text(f"text,category\n{rows}")
    (folder / "test.csv").write_text("text,category\nWhy?,a\n")
    (folder / "categories.json").write_text('["a", "b", "c"]')
    return folder


def test_a_class_without_an_example_is_no_fault(banking):
    data = load_task("banking77", banking)
    assert data.labels == ("a", "b", "c") and len(data.splits["valid"]) == 2


@pytest.mark.parametrize(
    ("name", "rows", "complaint"),
    [
        ("train.csv", "", r"train\.csv has no rows"),
        ("test.csv", "", r"test\.csv has no rows"),
        ("train.csv", "Why?,a\nWhen?,b\n", r"too few rows, the validation split has no example"),
        ("test.csv", "Why?,d\n", r"test\.csv, line 2: category='d'; expected a category that categories\.json lists"),
    ],
)
def test_a_split_without_an_example_is_refused(banking, name, rows, complaint):
    (banking / name).write_text(f"text,category\n{rows}")
    with pytest.raises(UserError, match=complaint):
        load_task("banking77", banking)


@pytest.mark.parametrize("name", ["train.csv", "categories.json"])
def test_a_fifo_among_the_raw_files_is_refused(banking, name):
    (banking / name).unlink()
    os.mkfifo(banking / name)
    with pytest.raises(UserError, match=rf"{name} is not a regular file"):
        load_task("banking77", banking)
