"""The TFDS builder of GSM8K. Its description is README.md, which TFDS finds beside this file."""

import re

from lora_jax.data.folder_builder import PromptBuilder
from lora_jax.data.held_out import cut_prompts
from lora_jax.data.json_lines import Record, read_json_lines

# The official rule, extract_answer in grade_school_math/dataset.py.
ANSWER = re.compile(r"#### -?[0-9.,]+")


class Gsm8k(PromptBuilder):
    """Reads train.jsonl and test.jsonl in `folder`; the network is not used."""

    homepage = "https://github.com/openai/grade-school-math"
    license = "MIT"

    def splits(self) -> dict[str, list[dict[str, str]]]:
        train, validation = cut_prompts(self._examples("train.jsonl"))
        return {"train": train, "validation": validation, "test": self._examples("test.jsonl")}

    def _examples(self, name: str) -> list[dict[str, str]]:
        return [_example(record) for record in read_json_lines(self.folder / name)]


def _example(record: Record) -> dict[str, str]:
    answer = record.text("answer")
    if not ANSWER.search(answer):
        raise record.error("answer", "a solution that ends with #### and a number")
    return {"prompt": record.text("question"), "reference": answer}
