"""GSM8K from files in its published format, a few problems made for this test."""

import gzip
import json
from pathlib import Path

import pytest

from lora_jax.data.held_out import normalise
from lora_jax.data.tasks import TASKS, load_task
from lora_jax.errors import UserError


def line(i: int) -> str:
    solution = f"Ann has 2 + {i} = <<2+{i}={2 + i}>>{2 + i} figs.\n#### {2 + i}"
    return json.dumps({"question": f"Ann has 2 figs and gets {i} more.  How many?", "answer": solution})


@pytest.fixture
def folder(tmp_path, private_cache) -> Path:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(line, range(40))) + "\n")
    (folder / "test.jsonl").write_text("\n".join(map(line, range(100, 103))) + "\n")
    return folder


def test_questions_are_prompts_and_solutions_are_kept_as_published(folder):
    test = load_task("gsm8k", folder).splits["test"]
    assert test.choices is None
    assert sorted(zip(test.texts, test.labels, strict=True))[0] == (
        "Ann has 2 figs and gets 100 more.  How many?",
        "Ann has 2 + 100 = <<2+100=102>>102 figs.\n#### 102",
    )


def test_a_tenth_of_the_training_questions_validates(folder):
    splits = load_task("gsm8k", folder).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 36, "valid": 4, "test": 3}
    held_out = set(map(normalise, splits["valid"].texts))
    assert len(held_out) == 4 and not held_out & set(map(normalise, splits["train"].texts))


def test_compressed_files_give_the_same_data(folder, tmp_path):
    fingerprint = load_task("gsm8k", folder).fingerprint
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in folder.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert load_task("gsm8k", packed).fingerprint == fingerprint


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not JSON", r"train\.jsonl, line 41, column 2: .*; expected JSON"),
        ('{"question": "How many?"}', r"train\.jsonl, line 41: has no answer"),
        ('{"answer": "#### 4"}', r"train\.jsonl, line 41: has no question"),
        ('{"question": " ", "answer": "#### 4"}', r"line 41: question=' '; expected a text"),
        ('{"question": "How many?", "answer": "Four."}', r"line 41: answer='Four\.'; expected a solution .* ####"),
        ('["How many?", "#### 4"]', r"line 41 holds \['How many\?', '#### 4'\]; expected an object"),
    ],
)
def test_a_malformed_line_is_named(folder, bad, message):
    with (folder / "train.jsonl").open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(UserError, match=message):
        load_task("gsm8k", folder)


def test_the_official_match_heads_the_table_and_the_loss_selects():
    task = TASKS["gsm8k"]
    assert (task.metric, task.select, task.folder) == ("gsm8k_match", "loss", "gsm8k")
