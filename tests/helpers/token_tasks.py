"""Small data and models for the objectives that label tokens."""

import shutil
from pathlib import Path

from helpers.checkpoints import add_masked_head, tiny_bert

OTHERS = ("walks", "unbelievably", ",", "and", "sees")


def write_wnut17(folder: Path, sentences: int = 40) -> Path:
    """Writes WNUT-17's files with made-up sentences of two lengths, whose words tell their tags."""
    folder.mkdir()
    lines = []
    for i in range(sentences):
        words = [("Obama", "B-person"), ("junior", "I-person")][: 1 + i % 2]
        words += [(OTHERS[(i + j) % 5], "O") for j in range(2 + 7 * (i % 3))] + [("Paris", "B-location")]
        lines.append("".join(f"{word}\t{tag}\n" for word, tag in words))
    for name, part in (("wnut17train.conll", lines), ("emerging.dev.conll", lines[:9])):
        (folder / name).write_text("\n".join(part))
    (folder / "emerging.test.annotated").write_text("\n".join(lines[5:18]))
    return folder


def write_masked_model(folder: Path, model: Path) -> Path:
    """Copies the tiny BERT at `model` to `folder`, and adds a head of masked language modelling."""
    shutil.copytree(model, folder)
    return add_masked_head(folder, tiny_bert())
