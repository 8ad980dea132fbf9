"""The TFDS builder of the commonsense tasks. Its description is README.md, which TFDS finds beside this file."""

import re
from typing import Any

from lora_jax.data.folder_builder import ChoiceBuilder
from lora_jax.data.held_out import cut_prompts
from lora_jax.data.instructions import Instruction, read_instructions

FORMAT = re.compile(r"Answer format: *(\w+(?:/\w+)+)\s*\Z")


class Commonsense(ChoiceBuilder):
    """Reads train.json and test.json in `folder`; the network is not used."""

    homepage = "https://github.com/AGI-Edgerunners/LLM-Adapters"
    license = "see the list of data sets"

    def splits(self) -> dict[str, list[dict[str, Any]]]:
        train, validation = cut_prompts(self._examples("train.json"))
        return {"train": train, "validation": validation, "test": self._examples("test.json")}

    def _examples(self, name: str) -> list[dict[str, Any]]:
        return [_example(row) for row in read_instructions(self.folder / name)]


def _example(row: Instruction) -> dict[str, Any]:
    found = FORMAT.search(row.instruction)
    options = found[1].split("/") if found else []
    if not found or len(set(options)) < len(options):
        raise row.record.error("instruction", "a question that ends like Answer format: answer1/answer2")
    if row.answer not in options:
        raise row.record.error("answer", f"one of {', '.join(options)}")
    reference = _sentence(row.answer)
    if row.output.strip() != reference:
        raise row.record.error("output", repr(reference))
    return {"prompt": row.instruction, "reference": reference, "choices": [_sentence(option) for option in options]}


def _sentence(option: str) -> str:
    return f"the correct answer is {option}"
