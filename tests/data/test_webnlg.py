"""WebNLG from files in the challenge's format, a few entries made for this test."""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import CommandLine, read, records

from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")


def entry(category: str, triples: list[tuple[str, str, str]], *texts: str) -> dict[str, Any]:
    """Returns an entry; a text that begins with a question mark is one to be fixed."""
    lexicalisations = [
        {"comment": "toFix" if text.startswith("?") else "good", "lang": "", "lex": text, "xml_id": f"Id{i}"}
        for i, text in enumerate(texts, 1)
    ]
    written = [{"object": o, "property": p, "subject": s} for s, p, o in triples]
    return {"category": category, "lexicalisations": lexicalisations, "modifiedtripleset": written, "size": "1"}


def numbered(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"entries": [{str(i): entry} for i, entry in enumerate(entries, 1)]}


AARHUS = [("Aarhus_Airport", "cityServed", "Aarhus"), ("Aarhus", "leader", '"Jacob  B."')]
GIVEN = {
    "train.json": numbered(
        entry("Airport", AARHUS[:1], "Aarhus has an airport.", "Aarhus Airport serves  Aarhus.", "?Aarhus airport"),
        entry("City", AARHUS[1:], "Jacob B. leads Aarhus."),
        entry("City", AARHUS[1:], "?Jacob"),
    ),
    "dev.json": numbered(entry("Airport", AARHUS, "It is led by Jacob B.", "Jacob.", "Aarhus: Jacob.")),
    "test.json": numbered(
        entry("City", AARHUS[1:], "Aarhus is led by Jacob B.", "Jacob B. leads."),
        entry("Artist", [("Aaron_Turner", "genre", "Black_metal")], "Aaron plays metal.", "Metal: Aaron."),
        entry("Athlete", [("Alan_Martin", "club", "Hamilton")], "Alan plays."),
    ),
}
LED = 'Aarhus : leader : "Jacob  B."'


def write(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda files: None) -> Path:
    """Writes GIVEN, which `change` may change first."""
    files = copy.deepcopy(GIVEN)
    change(files)
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def pairs(name: str, folder: Path, split: str) -> list[tuple[str, str]]:
    examples = load_task(name, folder).splits[split]
    return list(zip(examples.texts, examples.labels, strict=True))


def test_triples_are_written_as_the_papers_code_does(tmp_path):
    folder = write(tmp_path / "raw")
    assert set(pairs("webnlg", folder, "train")) == {
        ("Aarhus_Airport : cityServed : Aarhus", "Aarhus has an airport."),
        ("Aarhus_Airport : cityServed : Aarhus", "Aarhus Airport serves Aarhus."),
        (LED, "Jacob B. leads Aarhus."),
    }
    both = f"Aarhus_Airport : cityServed : Aarhus | {LED}"
    assert sorted(pairs("webnlg", folder, "valid")) == [
        (both, "Aarhus: Jacob."),
        (both, "It is led by Jacob B."),
        (both, "Jacob."),
    ]


def test_the_test_split_is_of_seen_categories_of_unseen_ones_or_of_all(tmp_path):
    folder = write(tmp_path / "raw")
    seen, unseen = pairs("webnlg_seen", folder, "test"), pairs("webnlg_unseen", folder, "test")
    assert sorted(seen) == [(LED, "Aarhus is led by Jacob B."), (LED, "Jacob B. leads.")]
    assert {text for _, text in unseen} == {"Aaron plays metal.", "Metal: Aaron.", "Alan plays."}
    assert sorted(pairs("webnlg", folder, "test")) == sorted(seen + unseen)
    for split in ("train", "valid"):
        assert pairs("webnlg_seen", folder, split) == pairs("webnlg_unseen", folder, split)


def test_references_of_a_prompt_follow_one_another(tmp_path):
    def many(files):
        files["test.json"] = numbered(
            *[entry("City", [(f"City_{i}", "p", "o")], *[f"Text {i} {j}." for j in range(3)]) for i in range(30)]
        )

    prompts = [prompt for prompt, _ in pairs("webnlg", write(tmp_path / "raw", many), "test")]
    assert [len(set(prompts[i : i + 3])) for i in range(0, 90, 3)] == [1] * 30 and len(set(prompts)) == 30


def test_compressed_files_are_read_too(tmp_path):
    folder = write(tmp_path / "raw")
    expected = load_task("webnlg", folder).fingerprint
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_task("webnlg", folder).fingerprint == expected


def second(files) -> dict[str, Any]:
    return files["train.json"]["entries"][1]["2"]


MALFORMED = {
    "not JSON": (lambda files: files.update({"dev.json": "{"}), r"dev\.json, line 1, column 2: Expecting"),
    "a list": (lambda files: files.update({"dev.json": "[]"}), r"dev\.json holds \[\]; expected an object"),
    "no entries": (lambda files: files["train.json"].clear(), r"train\.json: has no entries; expected a list of one"),
    "an empty list": (
        lambda files: files["train.json"].update(entries=[]),
        r"train\.json: entries=\[\]; expected a list of one or more objects",
    ),
    "another number": (
        lambda files: files["train.json"]["entries"].pop(0),
        r"train\.json, entries\[0\]: has no 1; expected an object",
    ),
    "no category": (
        lambda files: second(files).pop("category"),
        r"train\.json, entries\[1\], 2: has no category; expected a text",
    ),
    "no triples": (
        lambda files: second(files).update(modifiedtripleset=[]),
        r"entries\[1\], 2: modifiedtripleset=\[\]; expected a list of one or more objects",
    ),
    "an object that is a number": (
        lambda files: second(files)["modifiedtripleset"][0].update(object=7),
        r"entries\[1\], 2, modifiedtripleset\[0\]: object=7; expected a text",
    ),
    "no text": (
        lambda files: second(files)["lexicalisations"][0].pop("lex"),
        r"entries\[1\], 2, lexicalisations\[0\]: has no lex; expected a text",
    ),
    "a blank text": (
        lambda files: second(files)["lexicalisations"][0].update(lex=" "),
        r"lexicalisations\[0\]: lex=' '; expected a text",
    ),
    "no good text": (
        lambda files: files.update({"dev.json": numbered(entry("City", AARHUS, "?Jacob"))}),
        r"too few rows, the validation split has no example",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_the_place_in_it(tmp_path, case):
    change, complaint = MALFORMED[case]
    with pytest.raises(UserError, match=complaint):
        load_task("webnlg", write(tmp_path / "raw", change))


def test_a_test_split_without_such_categories_is_refused(tmp_path):
    def only_seen(files):
        files["test.json"]["entries"] = files["test.json"]["entries"][:1]

    folder = write(tmp_path / "raw", only_seen)
    assert len(pairs("webnlg_seen", folder, "test")) == 2
    with pytest.raises(UserError, match=r"no text in test\.json has a category that is not in train\.json"):
        load_task("webnlg_unseen", folder)


@pytest.mark.slow
def test_settings_of_the_unseen_categories_compose(command: CommandLine, tiny_decoder, tmp_path):
    folder = write(tmp_path / "raw")
    asked = ["model=smollm2_135m", f"model.source={tiny_decoder}", "task=webnlg_unseen", f"task.data_dir={folder}"]
    short = ["task.buckets=[128]", "task.decode.new_tokens=4", "steps=1", "batch=2", "rank=2", "baseline=none"]
    done = command.sweep(tmp_path / "sweep", *asked, *short)
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    summary = read(run / "summary.json")
    assert (summary["metric"], summary["select"]) == ("bleu", "loss") and "bleu" in summary["test"]
    texts = [json.loads(line) for line in (run / "texts.jsonl").read_text().splitlines()]
    assert sorted(len(text["references"]) for text in texts) == [1, 2]
    assert records(run)
