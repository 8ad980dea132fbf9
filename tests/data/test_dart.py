"""DART from files in its format, a few triple sets made for this test."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")

COLLEGE = {
    "tripleset": [["Mars Hill College", "JOINED", "1973"], ["Mars Hill College", "HOME_TOWN", "Mars  Hill"]],
    "subtree_was_extended": True,
    "annotations": [
        {"source": "WikiSQL_decl_sents", "text": "A school from Mars Hill,\tjoined in  1973."},
        {"source": "WikiSQL_lily", "text": ""},  # the published test data have such a one
        {"source": "WikiSQL_lily", "text": "It joined in 1973."},
    ],
}
MILL = {"tripleset": [["The Mill", "eatType", ""]], "annotations": [{"source": "e2e", "text": "The Mill is a pub."}]}
NAMES = {split: f"dart-v1.1.1-full-{split}.json" for split in ("train", "dev", "test")}


def write(folder: Path, **contents: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for split, name in NAMES.items():
        content = contents.get(split, [MILL])
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_triples_are_written_as_the_papers_code_does_and_blank_texts_passed_over(tmp_path):
    splits = load_task("dart", write(tmp_path / "raw", train=[COLLEGE, MILL], test=[COLLEGE])).splits
    college = "Mars Hill College : joined : 1973 | Mars Hill College : home_town : Mars  Hill"
    assert sorted(zip(splits["test"].texts, splits["test"].labels, strict=True)) == [
        (college, "A school from Mars Hill, joined in 1973."),
        (college, "It joined in 1973."),
    ]
    assert (splits["valid"].texts, splits["valid"].labels) == (["The Mill : eattype : "], ["The Mill is a pub."])
    assert sorted(splits["train"].texts) == [college, college, "The Mill : eattype : "]


def changed(**values: Any) -> list[dict[str, Any]]:
    """Returns two entries; the second has `values`, and lacks those that are None."""
    entry = copy.deepcopy(COLLEGE) | values
    return [MILL, {key: value for key, value in entry.items() if value is not None}]


MALFORMED = {
    "not JSON": ('[{"tripleset": ]', r", line 1, column 16: Expecting value; expected JSON"),
    "an object": ("{}", r" holds \{\}; expected a list of one or more objects"),
    "an empty list": ("[]", r" holds \[\]; expected a list of one or more objects"),
    "no object": ([MILL, 3], r", \[1\] holds 3; expected an object"),
    "no triple set": (changed(tripleset=None), r", \[1\]: has no tripleset; expected a list of 1 or more lists of"),
    "an empty triple set": (changed(tripleset=[]), r", \[1\]: tripleset=\[\]; expected a list of 1 or more lists of"),
    "a pair": (
        changed(tripleset=[["a", "b", "c"], ["a", "b"]]),
        r", \[1\], tripleset\[1\] is \['a', 'b'\]; expected a list of subject, relation, object",
    ),
    "a number": (changed(tripleset=[["a", "b", 3]]), r", \[1\], tripleset\[0\]: object=3; expected a text"),
    "no annotations": (changed(annotations=None), r", \[1\]: has no annotations; expected a list of one"),
    "empty annotations": (changed(annotations=[]), r", \[1\]: annotations=\[\]; expected a list of one"),
    "no text": (changed(annotations=[{"source": "e2e"}]), r", \[1\], annotations\[0\]: has no text; expected a text"),
    "no text at all": (changed(annotations=[{"text": ""}])[1:], r"too few rows, the validation split has no example"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_the_index(tmp_path, case):
    content, complaint = MALFORMED[case]
    file = "" if complaint.startswith("too") else r"dart-v1\.1\.1-full-dev\.json"
    with pytest.raises(UserError, match=file + complaint):
        load_task("dart", write(tmp_path / "raw", dev=content))


def test_missing_files_are_named(tmp_path):
    (write(tmp_path / "raw") / NAMES["dev"]).unlink()
    with pytest.raises(UserError, match=r"it has no dart-v1\.1\.1-full-dev\.json; expected a folder with dart-v1"):
        load_task("dart", tmp_path / "raw")
