"""Raw files of JSON: what is read of them, and how what cannot be used is refused."""

import json

import pytest

from lora_jax.data.json_lines import Record, read_json, read_json_lines, read_json_list
from lora_jax.errors import UserError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train.json"


def test_lines_are_split_at_newlines_alone(file):
    file.write_bytes('\ufeff{"text": "a\u2028b\u0085"}\r\n\n{"text": "c", "more": 1}'.encode())
    records = read_json_lines(file)
    assert [record.text("text") for record in records] == ["a\u2028b\u0085", "c"]
    assert [record.where.rpartition(", ")[2] for record in records] == ["line 1", "line 3"]


def test_a_list_and_an_object_are_read(file):
    file.write_text('[{"a": "x"}, {"a": "y"}]')
    assert [record.text("a") for record in read_json_list(file)] == ["x", "y"]
    file.write_text('{"entries": [{"a": " "}]}')
    assert [record.string("a") for record in read_json(file).records("entries")] == [" "]


@pytest.mark.parametrize(
    ("read", "content", "complaint"),
    [
        (read_json, "", r", line 1, column 1: Expecting value; expected JSON"),
        (read_json, '{"a": 1,\n "b" 2}', r", line 2, column 6: Expecting ':' delimiter; expected JSON"),
        (read_json, "[1]", r" holds \[1\]; expected an object"),
        (read_json, "[" * 100_000, r", from line 1: .*; expected JSON"),
        (read_json, '{"a": ' + "9" * 5000 + "}", r", from line 1: .*; expected JSON"),
        (read_json_list, '{"a": 1}', r" holds \{'a': 1\}; expected a list of one or more objects"),
        (read_json_list, "[]", r" holds \[\]; expected a list of one or more objects"),
        (read_json_list, '[{"a": NaN}]', r", from line 1: NaN is no number in JSON; expected JSON"),
        (read_json_list, '[{}, "text"]', r", \[1\] holds 'text'; expected an object"),
        (read_json_lines, "\n \n", r" has no line; expected one or more, each an object in JSON"),
        (read_json_lines, '{}\n\n{"a": 1', r", line 3, column 8: Expecting ',' delimiter; expected JSON"),
        (read_json_lines, "{}\n7\n", r", line 2 holds 7; expected an object"),
        (read_json_lines, "{}\nInfinity\n", r", from line 2: Infinity is no number"),
    ],
)
def test_a_malformed_file_is_refused_by_its_name_and_the_place_in_it(file, read, content, complaint):
    file.write_text(content)
    with pytest.raises(UserError, match=rf"^task\.data_dir: {file}{complaint}") as refusal:
        read(file)
    assert len(str(refusal.value)) < 500


def test_values_are_checked_by_their_kind():
    whole = {"i": 3, "f": 2.5, "t": " x", "inf": float("inf"), "yes": True, "no": None, "cut": "\ud800"}
    record = Record({**whole, "r": whole, "texts": ["a", ""], "rows": [[1, "b"]], "none": []}, "here")
    assert (record.text("t"), record.string("t"), record.index("i", 4)) == (" x", " x", 3)
    assert [record.scalar(key) for key in ("i", "f", "t")] == ["3", "2.5", " x"]
    assert record.record("r").values == whole and record.strings("texts") == ["a", ""]
    assert record.rows("none", ("a",), least=0) == []
    (row,) = record.rows("rows", ("n", "t"))
    assert (row.index("n", 2), row.text("t")) == (1, "b")
    for ask, complaint in (
        (lambda: record.text("x"), "here: has no x; expected a text"),
        (lambda: record.text("no"), "here: no=None; expected a text"),
        (lambda: record.text("cut"), r"here: cut='\\ud800'; expected a text"),
        (lambda: record.scalar("inf"), "here: inf=inf; expected a text or a finite number"),
        (lambda: record.scalar("yes"), "here: yes=True; expected a text or a finite number"),
        (lambda: record.index("i", 3), "here: i=3; expected a whole number from 0 to 2"),
        (lambda: record.index("yes", 3), "here: yes=True; expected a whole number from 0 to 2"),
        (lambda: record.record("texts"), r"here: texts=\['a', ''\]; expected an object"),
        (lambda: record.record("r").text("i"), "here, r: i=3; expected a text"),
        (lambda: record.records("none"), r"here: none=\[\]; expected a list of one or more objects"),
        (lambda: record.records("texts"), r"here, texts\[0\] holds 'a'; expected an object"),
        (lambda: record.strings("rows"), r"here, rows: 0=\[1, 'b'\]; expected a text"),
        (lambda: record.strings("none"), r"here: none=\[\]; expected a list of one or more texts"),
        (lambda: record.rows("none", ("a", "b")), r"here: none=\[\]; expected a list of 1 or more lists of a, b"),
        (lambda: record.rows("rows", ("a",)), r"here, rows\[0\] is \[1, 'b'\]; expected a list of a"),
        (lambda: row.text("n"), r"here, rows\[0\]: n=1; expected a text"),
    ):
        with pytest.raises(UserError, match=f"^{complaint}$"):
            ask()


def test_a_record_is_what_json_wrote(file):
    given = {"a": {"b": [["x", 1, 2.0]]}}
    file.write_text(json.dumps(given, indent=2))
    (row,) = read_json(file).record("a").rows("b", ("text", "whole", "real"))
    assert [row.scalar(key) for key in row.values] == ["x", "1", "2.0"]
