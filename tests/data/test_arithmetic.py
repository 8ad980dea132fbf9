"""The arithmetic tasks from files in LLM-Adapters' format, a few problems made for this test."""

import functools
import gzip
import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest

from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.tasks import TASKS, load_task
from lora_jax.data.tasks.arithmetic.builder import problem_key
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")

SETS = {"svamp": "SVAMP", "addsub": "AddSub", "multiarith": "MultiArith", "singleeq": "SingleEq"}
THINGS = ("figs", "nuts", "pens", "cups", "hats", "bats", "dogs", "cats", "bees", "keys")


def number(thing: str, i: int = 3, *, said: int | None = None) -> dict[str, str]:
    total = 2 + i
    output = f"\nA: Ann has 2 + {i} = {total} {thing}. The answer is {total if said is None else said}."
    return {
        "instruction": f" Ann has 2 {thing} and gets {i} more . How many? ",
        "input": "",
        "output": output,
        "answer": f"{total}.0",
    }


def letter(thing: str, answer: str = "B") -> dict[str, str]:
    return {
        "instruction": f"What do {thing} cost? Answer Choices: (A) 1 (B) 2 (C) 3 (D) 4 (E) None of these",
        "input": "",
        "output": "\nRationale: Because. The answer is (A).",
        "answer": answer,
    }


def write(folder: Path, train: list, **tests: list) -> Path:
    for name, rows in (("math_data.json", train), *((f"{name}/test.json", rows) for name, rows in tests.items())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("name", SETS)
def test_no_training_problem_is_a_test_problem_with_other_numbers(name, tmp_path):
    train = [*map(number, THINGS), letter("figs")]
    splits = load_task(
        name, write(tmp_path / "data", train, **{SETS[name]: [number("FIGS", 70), number("eggs")]})
    ).splits
    used = [*splits["train"].texts, *splits["valid"].texts]
    assert sorted(used) == sorted(f"Ann has 2 {thing} and gets 3 more . How many?" for thing in THINGS[1:])
    assert len(splits["valid"]) == 1
    assert sorted(splits["test"].texts) == [
        "Ann has 2 FIGS and gets 70 more . How many?",
        "Ann has 2 eggs and gets 3 more . How many?",
    ]


def test_solutions_that_end_with_another_number_are_not_trained_on(tmp_path):
    train = [*map(number, THINGS), number("rats", said=6), {**number("oxen"), "output": ""}]
    splits = load_task("svamp", write(tmp_path / "data", train, SVAMP=[number("eggs", said=9)])).splits
    references = dict(zip(splits["train"].texts, splits["train"].labels, strict=True))
    assert not any("rats" in text or "oxen" in text for text in [*references, *splits["valid"].texts])
    nuts = {**references, **dict(zip(splits["valid"].texts, splits["valid"].labels, strict=True))}
    assert nuts["Ann has 2 nuts and gets 3 more . How many?"] == "Ann has 2 + 3 = 5 nuts. The answer is 5."
    assert splits["test"].labels == ["The answer is 5."]  # the solution says 9


@pytest.mark.parametrize(
    ("answer", "reference"), [("9.8", "9.8"), ("-3.0", "-3"), ("4", "4"), ("123456789.0", "123456789")]
)
def test_a_test_reference_says_the_number_alone(answer, reference, tmp_path):
    test = {**number("eggs"), "answer": answer}
    splits = load_task("addsub", write(tmp_path / "data", [*map(number, THINGS)], AddSub=[test])).splits
    assert splits["test"].labels == [f"The answer is {reference}."]


def test_aqua_tests_on_what_it_does_not_train_on(tmp_path):
    train = [*map(letter, THINGS), number("figs")]
    splits = load_task("aqua", write(tmp_path / "data", train, AQuA=[letter("figs"), letter("eggs", "E")])).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "valid": 1, "test": 1}
    assert splits["test"].texts == [letter("eggs")["instruction"]] and splits["test"].labels == ["E"]
    assert splits["test"].choices == [("A", "B", "C", "D", "E")]
    assert set(splits["train"].labels) == {"B"}


def test_a_problem_is_known_by_its_words():
    assert problem_key("Ann, has 1,200 figs .") == problem_key("ann has 3.5 FIGS.")
    assert problem_key("Ann has 3 figs.") != problem_key("Ann has 3 nuts.")
    assert problem_key("Ann has 3 figs.") != problem_key("Ann has figs.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**number("eggs"), "answer": "five"}, r"answer='five'; expected a finite number"),
        ({**number("eggs"), "answer": "nan"}, r"answer='nan'; expected a finite number"),
        ({"instruction": "How many?", "input": "", "output": "5"}, r"has no answer"),
    ],
)
def test_a_problem_without_a_number_is_named(row, message, tmp_path):
    folder = write(tmp_path / "data", [*map(number, THINGS), row], SVAMP=[number("eggs")])
    with pytest.raises(UserError, match=r"math_data\.json, \[10\]: " + message):
        load_task("svamp", folder)
    folder = write(tmp_path / "data", [*map(number, THINGS)], SVAMP=[number("eggs"), row])
    with pytest.raises(UserError, match=r"SVAMP/test\.json, \[1\]: " + message):
        load_task("svamp", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "F"}, r"answer='F'; expected one of A, B, C, D, E"),
        ({"instruction": "What? (A) 1 (B) 2"}, r"instruction=.*; expected a question that ends like Answer Choices: "),
        ({"instruction": "Answer Choices: (A) 1 (C) 2"}, r"instruction=.*; expected a question that ends like"),
        ({"instruction": "Answer Choices: (A) 1"}, r"instruction=.*; expected a question that ends like"),
    ],
)
def test_choices_that_cannot_be_read_are_named(change, message, tmp_path):
    row = {**letter("eggs"), **change}
    with pytest.raises(UserError, match=r"AQuA/test\.json, \[0\]: " + message):
        load_task("aqua", write(tmp_path / "data", [*map(letter, THINGS)], AQuA=[row]))


def test_missing_files_are_named_with_their_folders(tmp_path):
    with pytest.raises(
        UserError, match=r"it has no SingleEq/test\.json; expected .* math_data\.json, SingleEq/test\.json"
    ):
        load_task("singleeq", write(tmp_path / "data", [number("figs")]))


def test_a_training_set_of_test_problems_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match="the train split has no example"):
        load_task("svamp", write(tmp_path / "data", [number("figs")], SVAMP=[number("figs")]))


def test_files_in_folders_are_unpacked_and_downloaded(tmp_path):
    folder = write(tmp_path / "data", [*map(number, THINGS)], SVAMP=[number("eggs")])
    fingerprint = load_task("svamp", folder).fingerprint
    (folder / "SVAMP/test.json.gz").write_bytes(gzip.compress((folder / "SVAMP/test.json").read_bytes()))
    content = (folder / "SVAMP/test.json").read_bytes()
    (folder / "SVAMP/test.json").unlink()
    assert load_task("svamp", folder).fingerprint == fingerprint
    (folder / "SVAMP/test.json").write_bytes(content)

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    raw = RawFile("SVAMP/test.json", f"http://127.0.0.1:{server.server_port}/", hashlib.sha256(content).hexdigest())
    try:
        kept = raw_folder("svamp", None, [raw])
    finally:
        server.shutdown()
    assert (kept / "SVAMP/test.json").read_bytes() == content
    assert raw_folder("svamp", None, [raw]) == kept  # the server is gone


def test_answers_are_matched_by_their_kind():
    assert {name: TASKS[name].metric for name in (*SETS, "aqua")} == {
        **dict.fromkeys(SETS, "number_match"),
        "aqua": "letter_match",
    }
    assert {TASKS[name].folder for name in (*SETS, "aqua")} == {"llm_adapters"}
