"""The examples of one split: texts, and a label for each; and the documents in which they are searched.

Images are in images.py, conversations in chats.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Int32

from lora_jax.errors import UserError, shown

T = TypeVar("T")


class Split(Protocol):
    """The examples of one split. `Examples` holds texts, ``images.Images`` images."""

    @property
    def labels(self) -> Int32[np.ndarray, " examples"] | Float32[np.ndarray, " examples"] | list[str]: ...

    def __len__(self) -> int: ...

    def take(self: T, rows: Sequence[int]) -> T:
        """Returns the examples at `rows`, in that order."""
        ...

    def join(self: T, other: T) -> T:
        """Returns these examples, and then those of `other`."""
        ...

    def scored(self: T, limit: int | None) -> T:
        """Returns the first `limit` examples, which are scored; None: all of them."""
        ...

    def content(self) -> list[Any]:
        """Returns all that the examples are, in order, as JSON can hold it."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """One split. ``labels[i]`` belongs to ``texts[i]`` and, where the examples are pairs, to ``pairs[i]``.

    A label is a position in the task's list of labels (int32), a number to predict (float32), or a text to generate.
    In a task that embeds texts, an int32 label is a group: the texts of a group suit one another. Such a task may also
    have ``negatives[i]``, a text that resembles ``texts[i]`` and does not suit it.
    A text that has several references to generate is listed once for each. Where the text to generate is one of a few
    answers, `choices` lists them for each example, the right one among them.
    """

    texts: list[str]
    labels: Int32[np.ndarray, " examples"] | Float32[np.ndarray, " examples"] | list[str]
    pairs: list[str] | None = None
    choices: list[tuple[str, ...]] | None = None
    negatives: list[str] | None = None

    def __post_init__(self) -> None:
        if np.shape(self.labels) != (len(self.texts),):
            raise ValueError(f"{len(self.texts)} texts, but labels of shape {np.shape(self.labels)}")
        if self.pairs is not None and len(self.pairs) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts, but {len(self.pairs)} second texts")
        if self.negatives is not None and not (self.pairs is not None and len(self.negatives) == len(self.texts)):
            raise ValueError("negatives need second texts, and one negative for each example")
        if self.choices is not None and not (
            len(self.choices) == len(self.texts) and all(map(_holds, self.choices, self.labels))
        ):
            raise ValueError("every example needs choices, its label among them")
        if not isinstance(self.labels, list) and self.labels.dtype not in (np.int32, np.float32):
            raise ValueError(f"labels of {self.labels.dtype}: must be int32, float32 or a list of texts")
        if not isinstance(self.labels, list) and not (finite := np.isfinite(self.labels)).all():
            row = int(finite.argmin())
            raise UserError(
                f"example {row} ({shown(self.texts[row])}) has the label {self.labels[row]}; must be finite"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> "Examples":
        """Returns the examples at `rows`, in that order."""
        labels = self.labels
        return Examples(
            _take(self.texts, rows),
            _take(labels, rows) if isinstance(labels, list) else labels[np.asarray(rows, int)],
            None if self.pairs is None else _take(self.pairs, rows),
            None if self.choices is None else _take(self.choices, rows),
            None if self.negatives is None else _take(self.negatives, rows),
        )

    def join(self, other: "Examples") -> "Examples":
        """Returns these examples, and then those of `other`; ValueError if they have other columns."""
        labels: Any = (
            [*self.labels, *other.labels]
            if isinstance(self.labels, list)
            else np.concatenate([np.asarray(self.labels), np.asarray(other.labels)])
        )
        return Examples(
            self.texts + other.texts,
            labels,
            _join(self.pairs, other.pairs),
            _join(self.choices, other.choices),
            _join(self.negatives, other.negatives),
        )

    def scored(self, limit: int | None) -> "Examples":
        """Returns the first `limit` examples. A text with several references counts once, with its first."""
        rows: Sequence[int] = range(len(self))
        if isinstance(self.labels, list):
            rows = sorted({text: i for i, text in reversed(list(enumerate(self.texts)))}.values())
        return self.take(rows[:limit])

    def content(self) -> list[Any]:
        """Returns the texts, labels and, where there are any, second texts and choices. Fingerprints hash it."""
        # Single texts hash as they did before there were pairs.
        optional = [field for field in (self.pairs, self.choices, self.negatives) if field is not None]
        return [self.texts, np.asarray(self.labels).tolist(), *optional]


@dataclass(frozen=True, eq=False)
class Corpus:
    """The documents that a split's texts, its queries, are to find.

    Attributes:
      documents: the texts.
      relevant: for each query the positions of the documents that suit it, one or more.
    """

    documents: list[str]
    relevant: list[tuple[int, ...]]

    def __post_init__(self) -> None:
        for query, positions in enumerate(self.relevant):
            if not positions or not set(positions) <= set(range(len(self.documents))):
                raise ValueError(f"query {query}: {positions} must be positions among {len(self.documents)} documents")

    def relevance(self, queries: int) -> Float32[np.ndarray, "queries documents"]:
        """Returns 1 for each document that suits a query and 0 for the others, for the first `queries` queries."""
        relevance = np.zeros((queries, len(self.documents)), np.float32)
        for row, positions in zip(relevance, self.relevant, strict=False):
            row[list(positions)] = 1
        return relevance


def _holds(choices: tuple[str, ...], label: object) -> bool:
    return label in choices


def _join(first: list[T] | None, second: list[T] | None) -> list[T] | None:
    # A column that only one of them has is too short, which Examples refuses.
    return None if first is None and second is None else [*(first or ()), *(second or ())]


def _take(values: list[T], rows: Sequence[int]) -> list[T]:
    return [values[row] for row in rows]
