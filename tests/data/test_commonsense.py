"""The commonsense tasks from files in LLM-Adapters' format, a few questions made for this test."""

import json
from pathlib import Path

import pytest

from lora_jax.data.held_out import MOST_PROMPTS, cut_prompts
from lora_jax.data.tasks import TASKS, load_task
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")

NAMES = ("boolq", "piqa", "siqa", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
# As the data sets of this package write their options.
FORMATS = {
    "boolq": "question: {i} is even?\n\nAnswer format: true/false",
    "piqa": "how to do {i}\n\nSolution1: so \n\nSolution2: thus\n\nAnswer format: solution1/solution2",
    "siqa": "What is {i}?\n\nAnswer1: a Answer2: b Answer3: c\n\nAnswer format: answer1/answer2/answer3",
    "winogrande": "{i} than _.\n\nOption1: Ann Option2: Bob Answer format: option1/option2",
    "arc_easy": "What is {i}?\n\nAnswer1: a Answer2: b ...\n\nAnswer format: answer1/answer2/answer3/answer4/answer5",
    "arc_challenge": "What is {i}?\n\nAnswer1: a Answer2: b ...\n\nAnswer format: answer1/answer2/answer3/answer4",
    "openbookqa": "The sun {i}\n\nAnswer1: a Answer2: b ...\n\nAnswer format: answer1/answer2/answer3/answer4",
}


def record(name: str, i: int) -> dict[str, str]:
    instruction = FORMATS[name].format(i=i)
    options = instruction.rsplit(" ", 1)[1].split("/")
    answer = options[i % len(options)]
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def write(folder: Path, name: str, *added: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps([record(name, i) for i in range(30)]))
    (folder / "test.json").write_text(json.dumps([*[record(name, i) for i in range(100, 104)], *added]))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_choices_are_the_reference_with_each_option(name, tmp_path):
    splits = load_task(name, write(tmp_path / name, name)).splits
    assert {part: len(split) for part, split in splits.items()} == {"train": 27, "valid": 3, "test": 4}
    test = splits["test"]
    given = {row["instruction"]: row for row in (record(name, i) for i in range(100, 104))}
    for text, label, choices in zip(test.texts, test.labels, test.choices, strict=True):
        options = text.rsplit(" ", 1)[1].split("/")
        assert label == given[text]["output"]
        assert choices == tuple(f"the correct answer is {option}" for option in options)
    assert not set(splits["train"].texts) & set(splits["valid"].texts)


def test_the_options_are_those_of_each_question(tmp_path):
    three = {**record("siqa", 0), "instruction": "Which?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2"}
    test = load_task("arc_easy", write(tmp_path / "arc", "arc_easy", three)).splits["test"]
    assert sorted(map(len, test.choices)) == [2, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "answer9"}, r"answer='answer9'; expected one of answer1, answer2, answer3"),
        ({"output": "answer1"}, r"output='answer1'; expected 'the correct answer is answer1'"),
        ({"instruction": "Which?\n\nAnswer1: a"}, r"instruction='Which.*'; expected .* Answer format: answer1/answer2"),
        ({"instruction": "Answer format: answer1"}, r"instruction=.*; expected .* Answer format: answer1/answer2"),
        ({"instruction": "Answer format: a/b/a"}, r"instruction=.*; expected .* Answer format: answer1/answer2"),
        ({"instruction": " "}, r"instruction=' '; expected a text"),
        ({"input": "more"}, r"input='more'; expected an empty text"),
        ({"answer": 1}, r"answer=1; expected a text"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(change, message, tmp_path):
    folder = write(tmp_path / "siqa", "siqa", {**record("siqa", 0), **change})
    with pytest.raises(UserError, match=r"test\.json, \[4\]: " + message):
        load_task("siqa", folder)


@pytest.mark.parametrize("key", ["instruction", "input", "output", "answer"])
def test_a_missing_key_is_named(key, tmp_path):
    row = record("siqa", 0)
    del row[key]
    with pytest.raises(UserError, match=rf"test\.json, \[4\]: has no {key}"):
        load_task("siqa", write(tmp_path / "siqa", "siqa", row))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"instruction": ', r"train\.json, line 1, column 18: .*; expected JSON"),
        ('{"instruction": "?"}', r"train\.json holds .*; expected a list of one or more objects"),
        ("[]", r"train\.json holds \[\]; expected a list of one or more objects"),
        ('["?"]', r"train\.json, \[0\] holds '\?'; expected an object"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_refused(content, message, tmp_path):
    folder = write(tmp_path / "boolq", "boolq")
    (folder / "train.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_task("boolq", folder)


def test_at_most_500_prompts_validate_whatever_their_order():
    examples = [{"prompt": f"Question {i}"} for i in range(6_000)]
    train, validation = cut_prompts([*examples, {"prompt": "question  7"}])
    assert MOST_PROMPTS == len({row["prompt"].lower() for row in validation if row["prompt"] != "question  7"}) == 500
    assert len(train) + len(validation) == 6_001
    assert sorted(row["prompt"] for row in cut_prompts(examples[::-1])[1]) == sorted(
        row["prompt"] for row in validation if row["prompt"] != "question  7"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_choices_head_the_table(name):
    task = TASKS[name]
    assert (task.metric, task.select) == ("accuracy", "loss") and "choices" in task.evaluators
    assert task.folder.startswith("llm_adapters/")
