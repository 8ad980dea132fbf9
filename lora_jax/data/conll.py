"""Reads CoNLL's column format: a word and its tag in each line, and a blank line after each sentence."""

from collections.abc import Sequence
from pathlib import Path

from lora_jax.data.bounded import LARGEST
from lora_jax.data.tables import Row, read_text
from lora_jax.errors import UserError, shown

COLUMNS = ("word", "tag")
Sentence = list[tuple[str, str]]  # (word, tag)


def read_conll(path: Path, tags: Sequence[str], largest: int = LARGEST) -> list[Sentence]:
    """Returns the sentences of a file whose lines are a word, a tab and a tag. A line of white space is blank.

    Args:
      path: the file.
      tags: the tags that are accepted.
      largest: the most bytes that the file may have.

    Raises:
      UserError: the file cannot be read, has no sentence, or has a line that is malformed or of another tag.
    """
    where = f"task.data_dir: {path.absolute()}"
    expected = ", ".join(tags)
    sentences: list[Sentence] = [[]]
    # Not splitlines: words may hold U+2028 and others that it splits at.
    for number, line in enumerate(read_text(path, largest).split("\n"), 1):
        if not line.strip():
            sentences.append([])
            continue
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != len(COLUMNS):
            raise UserError(
                f"{where}, line {number}: {len(fields)} columns, {shown(line)}; expected 2, a word and a tag with a "
                f"tab between them"
            )
        row = Row(dict(zip(COLUMNS, fields, strict=True)), f"{where}, line {number}")
        sentences[-1].append((row.text("word"), row.label("tag", tags, expected)))
    found = [sentence for sentence in sentences if sentence]
    if not found:
        raise UserError(f"{where} has no sentence; expected one or more")
    return found
