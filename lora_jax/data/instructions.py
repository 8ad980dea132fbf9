"""Reads instruction data in the format of LLM-Adapters (Hu et al., arXiv 2304.01933).

A file is a JSON list of ``{"instruction": ..., "input": "", "output": ..., "answer": ...}``.
"""

from dataclasses import dataclass
from pathlib import Path

from lora_jax.data.json_lines import Record, read_json_list

# The commit of AGI-Edgerunners/LLM-Adapters whose files the tasks read.
URL = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a/"


@dataclass(frozen=True)
class Instruction:
    """One record: what is asked, the text that answers it, and the bare answer.

    Attributes:
      instruction: a question, never blank.
      output: the text to generate, which may be blank.
      answer: the right answer, never blank: a number, a letter or the name of an option.
      record: makes the error for a value that a task cannot use.
    """

    instruction: str
    output: str
    answer: str
    record: Record


def read_instructions(path: Path) -> list[Instruction]:
    """Returns the records of a file. Errors name the file, the index in its list, and the key.

    Raises:
      UserError: the file cannot be read, is not such a list, or a record lacks a text or has an ``input``.
    """
    return [_instruction(record) for record in read_json_list(path)]


def _instruction(record: Record) -> Instruction:
    if record.string("input"):
        raise record.error("input", "an empty text, with the question in instruction")
    return Instruction(record.text("instruction"), record.string("output"), record.text("answer"), record)
