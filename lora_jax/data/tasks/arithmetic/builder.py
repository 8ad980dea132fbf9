"""The TFDS builders of the arithmetic tasks. Their description is README.md, which TFDS finds beside this file."""

import math
import re
from typing import Any, ClassVar

from lora_jax.data.folder_builder import ChoiceBuilder, PromptBuilder
from lora_jax.data.held_out import cut_prompts
from lora_jax.data.instructions import Instruction, read_instructions
from lora_jax.metrics.answers import extract_number

TRAIN = "math_data.json"
LETTERS = ("A", "B", "C", "D", "E")
CHOICES = re.compile(r"Answer Choices:(.*)\Z", re.DOTALL)
# What math_data.json puts before every solution.
HEADING = re.compile(r"\A\s*(?:A|Rationale):\s*")
HOMEPAGE = "https://github.com/AGI-Edgerunners/LLM-Adapters"
LICENSE = "ODC-By 1.0 and the licences of the sets"


class Numbers(PromptBuilder):
    """Reads math_data.json and `test` in `folder`; the network is not used. The answers are numbers."""

    homepage, license = HOMEPAGE, LICENSE
    test: ClassVar[str]

    def splits(self) -> dict[str, list[dict[str, str]]]:
        problems = read_instructions(self.folder / self.test)
        test = [{"prompt": _prompt(row), "reference": f"The answer is {_written(_number(row))}."} for row in problems]
        tested = {problem_key(row.instruction) for row in problems}
        train, validation = cut_prompts(
            [
                {"prompt": _prompt(row), "reference": HEADING.sub("", row.output).strip()}
                for row in read_instructions(self.folder / TRAIN)
                if row.answer not in LETTERS and _is_right(row) and problem_key(row.instruction) not in tested
            ]
        )
        return {"train": train, "validation": validation, "test": test}


NUMBERS: dict[str, type[Numbers]] = {
    test: Numbers.named(name, test=test)
    for name, test in (
        ("svamp", "SVAMP/test.json"),
        ("add_sub", "AddSub/test.json"),
        ("multi_arith", "MultiArith/test.json"),
        ("single_eq", "SingleEq/test.json"),
    )
}


class Aqua(ChoiceBuilder):
    """Reads math_data.json and AQuA/test.json in `folder`; the network is not used. The answers are letters."""

    homepage, license = HOMEPAGE, LICENSE

    def splits(self) -> dict[str, list[dict[str, Any]]]:
        problems = [row for row in read_instructions(self.folder / TRAIN) if row.answer in LETTERS]
        trained = {problem_key(row.instruction) for row in problems}
        train, validation = cut_prompts([_lettered(row) for row in problems])
        test = [
            _lettered(row)
            for row in read_instructions(self.folder / "AQuA/test.json")
            if problem_key(row.instruction) not in trained
        ]
        return {"train": train, "validation": validation, "test": test}


def problem_key(text: str) -> str:
    """Returns what two problems share that differ in numbers, case, spaces and punctuation alone."""
    return re.sub(r"[^a-z#]+", "", re.sub(r"\d+(?:[.,]\d+)*", "#", text.lower()))


def _prompt(row: Instruction) -> str:
    return row.instruction.strip()


def _number(row: Instruction) -> float:
    try:
        value = float(row.answer)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise row.record.error("answer", "a finite number")
    return value


def _written(number: float) -> str:
    return str(int(number)) if number.is_integer() else str(number)


def _is_right(row: Instruction) -> bool:
    """Returns whether the solution, which a model wrote, ends with the right number, within LLM-Adapters' 0.001."""
    found, expected = extract_number(row.output), _number(row)
    return found is not None and abs(found - expected) <= 1e-3


def _lettered(row: Instruction) -> dict[str, Any]:
    found = CHOICES.search(row.instruction)
    letters = re.findall(r"\(([A-Z])\)", found[1]) if found else []
    if len(letters) < 2 or tuple(letters) != LETTERS[: len(letters)]:
        raise row.record.error("instruction", "a question that ends like Answer Choices: (A) 1 (B) 2")
    if row.answer not in letters:
        raise row.record.error("answer", f"one of {', '.join(letters)}")
    return {"prompt": _prompt(row), "reference": row.answer, "choices": letters}
