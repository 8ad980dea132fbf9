"""Cuts a validation split from the training texts of data sets without one. It depends on the texts alone."""

import collections
import hashlib
from collections.abc import Iterable, Sequence


def normalise(text: str) -> str:
    """Lower-cases a text and collapses its spaces, so that texts that differ in these alone count as the same."""
    return " ".join(text.lower().split())


def validation_texts(rows: Iterable[tuple[str, str]]) -> set[str]:
    """Returns the normalised texts of the validation split: for each label, the tenth with the smallest SHA-256."""
    by_label = collections.defaultdict(set)
    for text, label in rows:
        by_label[label].add(normalise(text))
    return {
        text
        for texts in by_label.values()
        for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[: (len(texts) + 5) // 10]
    }


def cut_validation(rows: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns the rows to train on and those of the validation split, each a (text, label)."""
    held_out = validation_texts(rows)
    train = [row for row in rows if normalise(row[0]) not in held_out]
    return train, [row for row in rows if normalise(row[0]) in held_out]
