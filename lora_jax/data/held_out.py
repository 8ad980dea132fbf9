"""Cuts a validation split from the training examples of data sets without one. It depends on the texts alone."""

import collections
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

AT_MOST = 2_000  # rows of a validation split
MOST_PROMPTS = 500  # of a validation split of texts to generate, which takes longer to score

# One text or two, and the label.
Labelled = TypeVar("Labelled", bound=tuple[str, ...])
Example = TypeVar("Example", bound=Mapping[str, Any])


def normalise(*texts: str) -> str:
    """Lower-cases texts and collapses their spaces, so that texts that differ in these alone count as the same."""
    return "\t".join(" ".join(text.lower().split()) for text in texts)


def validation_texts(
    rows: Iterable[tuple[str, ...]], stratum: Callable[[str], str] = str, at_most: int = AT_MOST
) -> set[str]:
    """Returns the normalised texts of the validation split: for each stratum, the tenth with the smallest SHA-256.

    If more than `at_most` rows have these texts, each stratum has its share of `at_most` rows instead.

    Args:
      rows: one text or two, and the label.
      stratum: groups labels, such as scores, which are too many for a tenth of each; by default a label is a stratum.
      at_most: rows of the split.
    """
    strata, rows_of = collections.defaultdict(set), collections.Counter[str]()
    for *texts, label in rows:
        strata[stratum(label)].add(normalise(*texts))
        rows_of[normalise(*texts)] += 1
    ordered = [by_hash(texts) for texts in strata.values()]
    tenth = {text for texts in ordered for text in texts[: (len(texts) + 5) // 10]}
    if sum(rows_of[text] for text in tenth) <= at_most:
        return tenth
    total = sum(map(len, ordered))
    return {
        text
        for texts in ordered
        for text, rows_so_far in zip(texts, itertools.accumulate(rows_of[text] for text in texts), strict=True)
        if rows_so_far <= len(texts) * at_most // total
    }


def cut_validation(
    rows: Sequence[Labelled], stratum: Callable[[str], str] = str
) -> tuple[list[Labelled], list[Labelled]]:
    """Returns the rows to train on and those of the validation split, as `validation_texts` chooses them."""
    held_out = validation_texts(rows, stratum)
    train = [row for row in rows if normalise(*row[:-1]) not in held_out]
    return train, [row for row in rows if normalise(*row[:-1]) in held_out]


def cut_prompts(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Returns the examples of generated texts to train on and those of the validation split, by their ``prompt``.

    The validation split has a tenth of the distinct prompts, but at most MOST_PROMPTS, so no prompt is on both sides.
    """
    held_out = validation_texts({(normalise(example["prompt"]), "") for example in examples}, at_most=MOST_PROMPTS)
    train = [example for example in examples if normalise(example["prompt"]) not in held_out]
    return train, [example for example in examples if normalise(example["prompt"]) in held_out]


def by_hash(texts: Iterable[str]) -> list[str]:
    """Returns texts in the order of their SHA-256, of which the first few are as good as drawn at random."""
    return sorted(texts, key=_digest)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
