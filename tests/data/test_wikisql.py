"""WikiSQL from files in its format, a few questions made for this test."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")

PLATES = {
    "id": "1-1000181-1",
    "header": ["State/territory", "Format", "Current\u00a0slogan", "Year  issued"],
    "types": ["text", "text", "text", "real"],
    "rows": [["New South Wales", "aa", "NSW", 1998]],
}


def example(question: str, sel: Any = 2, agg: Any = 0, conds: Any = (), table: str = PLATES["id"]) -> dict[str, Any]:
    sql = {"sel": sel, "conds": conds if isinstance(conds, str) else list(conds), "agg": agg}
    return {"phase": 1, "table_id": table, "question": question, "sql": sql}


SLOGAN = example(" What is the slogan\u00a0of New South Wales? ", conds=[[0, 0, "New South Wales"]])
NEWEST = example("Newest?", 3, 1)
COUNT = example("How many?", 0, 3, [[3, 1, 1998], [3, 2, 2001.5], [1, 0, "200\u2009mhz"]])


def lines(*values: Any) -> str:
    return "".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values)


def write(folder: Path, contents: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        for name, content in ((f"{split}.jsonl", lines(SLOGAN)), (f"{split}.tables.jsonl", lines(PLATES))):
            (folder / name).write_text((contents or {}).get(name, content))
    return folder


def test_queries_are_written_with_the_names_of_columns(tmp_path):
    splits = load_task("wikisql", write(tmp_path / "raw", {"test.jsonl": lines(SLOGAN, NEWEST, "\n", COUNT)})).splits
    table = "table: State/territory | Format | Current slogan | Year issued\nquestion: "
    assert dict(zip(splits["test"].texts, splits["test"].labels, strict=True)) == {
        f"{table}What is the slogan of New South Wales?": (
            "SELECT Current slogan FROM table WHERE State/territory = New South Wales"
        ),
        f"{table}Newest?": "SELECT MAX Year issued FROM table",
        f"{table}How many?": (
            "SELECT COUNT State/territory FROM table "
            "WHERE Year issued > 1998 AND Year issued < 2001.5 AND Format = 200 mhz"
        ),
    }
    assert [len(splits[name].texts) for name in ("train", "valid", "test")] == [1, 1, 3]


def test_a_split_has_its_own_tables(tmp_path):
    other = PLATES | {"header": ["A", "B", "C"]}
    labels = load_task("wikisql", write(tmp_path / "raw", {"dev.tables.jsonl": lines(other)})).splits["valid"].labels
    assert labels == ["SELECT C FROM table WHERE A = New South Wales"]


def test_the_published_archive_is_read_too(tmp_path):
    folder = write(tmp_path / "raw")
    with tarfile.open(tmp_path / "data.tar.bz2", "w:bz2") as archive:
        archive.add(folder, "data")
    assert load_task("wikisql", tmp_path).fingerprint == load_task("wikisql", folder).fingerprint
    (tmp_path / "data.tar.bz2").write_bytes(b"BZh9")
    with pytest.raises(UserError, match=r"data\.tar\.bz2 is not a readable tar file in bzip2"):
        load_task("wikisql", tmp_path)


def sql(**values: Any) -> str:
    return lines(SLOGAN, example("Which?", **values))


TABLES, QUESTIONS = "dev.tables.jsonl", "dev.jsonl"
MALFORMED = {
    "not JSON": (QUESTIONS, lines(SLOGAN, "{"), r"dev\.jsonl, line 2, column 2: Expecting .*; expected JSON"),
    "no line": (QUESTIONS, "\n", r"dev\.jsonl has no line; expected one or more"),
    "a list": (QUESTIONS, lines([SLOGAN]), r"dev\.jsonl, line 1 holds \[.*; expected an object"),
    "no question": (QUESTIONS, lines({"table_id": PLATES["id"]}), r"dev\.jsonl, line 1: has no question; expected a t"),
    "no query": (QUESTIONS, lines(SLOGAN | {"sql": None}), r"dev\.jsonl, line 1: sql=None; expected an object"),
    "no such table": (
        QUESTIONS,
        lines(SLOGAN, example("Which?", table="2-1")),
        r"dev\.jsonl, line 2: table_id='2-1'; expected the id of a table in dev\.tables\.jsonl",
    ),
    "a column beyond the last": (QUESTIONS, sql(sel=4), r"line 2, sql: sel=4; expected a whole number from 0 to 3"),
    "a column before the first": (QUESTIONS, sql(sel=-1), r"line 2, sql: sel=-1; expected a whole number from 0 to 3"),
    "a column's name": (QUESTIONS, sql(sel="Format"), r"line 2, sql: sel='Format'; expected a whole number"),
    "no aggregation": (QUESTIONS, sql(agg=6), r"line 2, sql: agg=6; expected a whole number from 0 to 5"),
    "a column of a condition": (
        QUESTIONS,
        sql(conds=[[0, 0, "a"], [4, 0, "a"]]),
        r"line 2, sql, conds\[1\]: column=4; expected a whole number from 0 to 3",
    ),
    "no operator": (
        QUESTIONS,
        sql(conds=[[0, 4, "a"]]),
        r"conds\[0\]: operator=4; expected a whole number from 0 to 3",
    ),
    "a value that is a list": (QUESTIONS, sql(conds=[[0, 0, []]]), r"conds\[0\]: value=\[\]; expected a text or a fin"),
    "a pair": (QUESTIONS, sql(conds=[[0, 0]]), r"conds\[0\] is \[0, 0\]; expected a list of column, operator, value"),
    "no conditions": (QUESTIONS, sql(conds="none"), r"line 2, sql: conds='none'; expected a list of 0 or more lists"),
    "no columns": (TABLES, lines(PLATES | {"header": []}), r"dev\.tables\.jsonl, line 1: header=\[\]; expected a list"),
    "a number for a column": (
        TABLES,
        lines(PLATES | {"header": ["a", 2]}),
        r"dev\.tables\.jsonl, line 1, header: 1=2; expected a text",
    ),
    "no id": (TABLES, lines({"header": ["a"]}), r"dev\.tables\.jsonl, line 1: has no id; expected a text"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_the_line(tmp_path, case):
    name, content, complaint = MALFORMED[case]
    with pytest.raises(UserError, match=complaint):
        load_task("wikisql", write(tmp_path / "raw", {name: content}))


def test_missing_files_are_named(tmp_path):
    (write(tmp_path / "raw") / "dev.tables.jsonl").unlink()
    with pytest.raises(UserError, match=r"it has no dev\.tables\.jsonl; expected a folder with train\.jsonl, train\.t"):
        load_task("wikisql", tmp_path / "raw")
