"""SAMSum from files in its format, a few chats made for this test."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_jax.data.prompts import make_prompts
from lora_jax.data.tasks import load_task
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")

COOKIES = {
    "id": "1",
    "summary": "Amanda baked cookies. \r\nJerry wants some.",
    "dialogue": "Amanda: I baked  cookies. Do you want some?\r\nJerry: Sure!\r\n\r\nAmanda: Caf\u00e9? :-)",
}
SHORT = {"id": "2", "summary": "Ann greets Bob.", "dialogue": "Ann: Hi, Bob"}
BLANK = {"id": "3", "summary": "Nothing is said.", "dialogue": " "}


def write(folder: Path, **contents: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        content = contents.get(split, [SHORT])
        (folder / f"{split}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_dialogue_has_an_utterance_a_line_and_blank_ones_are_passed_over(tmp_path):
    splits = load_task("samsum", write(tmp_path / "raw", train=[SHORT, BLANK, SHORT], test=[COOKIES])).splits
    assert splits["test"].texts == [
        "Amanda: I baked cookies. Do you want some?\nJerry: Sure!\nAmanda: Caf\u00e9? :-)\n"
    ]
    assert splits["test"].labels == ["Amanda baked cookies. Jerry wants some."]
    assert splits["train"].labels == ["Ann greets Bob."] * 2 and splits["valid"].texts == ["Ann: Hi, Bob\n"]


def test_an_empty_line_stands_before_the_summary(tmp_path, tiny_decoder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_decoder / "tokenizer.json"))
    prompts = make_prompts(load_task("samsum", write(tmp_path / "raw")).splits["test"], tokenizer, 256)
    assert tokenizer.decode(prompts.tokens[0][prompts.mask[0]].tolist()) == "Ann: Hi, Bob\n\n"


MALFORMED = {
    "not JSON": ('[{"id": 1},]', r"val\.json, line 1, column 12: .*; expected JSON"),
    "lines": ('{"id": 1}\n{"id": 2}\n', r"val\.json, line 2, column 1: Extra data; expected JSON"),
    "an empty list": ("[]", r"val\.json holds \[\]; expected a list of one or more objects"),
    "no dialogue": ([SHORT, {"summary": "a"}], r"val\.json, \[1\]: has no dialogue; expected a text"),
    "no summary": ([{"dialogue": "a"}], r"val\.json, \[0\]: has no summary; expected a text"),
    "a blank summary": ([SHORT | {"summary": ""}], r"val\.json, \[0\]: summary=''; expected a text"),
    "a list of turns": ([SHORT | {"dialogue": ["a"]}], r"val\.json, \[0\]: dialogue=\['a'\]; expected a text"),
    "blank dialogues alone": ([BLANK], r"too few rows, the validation split has no example"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_the_index(tmp_path, case):
    content, complaint = MALFORMED[case]
    with pytest.raises(UserError, match=complaint):
        load_task("samsum", write(tmp_path / "raw", val=content))


def test_without_a_folder_the_error_says_what_to_put_where(tmp_path):
    with pytest.raises(
        UserError, match=r"corpus\.7z is a 7z archive.*folder with train\.json, val\.json, test\.json by"
    ):
        load_task("samsum")
    with pytest.raises(UserError, match=r"it has no train\.json, val\.json, test\.json; expected a folder"):
        load_task("samsum", tmp_path)
