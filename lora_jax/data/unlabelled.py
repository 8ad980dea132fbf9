"""Texts without labels, for language modelling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class UnlabelledTexts:
    """One split: texts to model."""

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> list[str]:
        """The texts themselves, which are what is to be written."""
        return self.texts

    def content(self) -> list[Any]:
        """Returns the texts. Fingerprints hash it."""
        return [self.texts]

    def take(self, rows: Sequence[int]) -> "UnlabelledTexts":
        """Returns the texts at `rows`, in that order."""
        return UnlabelledTexts([self.texts[row] for row in rows])

    def join(self, other: "UnlabelledTexts") -> "UnlabelledTexts":
        """Returns these texts, and then those of `other`."""
        return UnlabelledTexts(self.texts + other.texts)

    def scored(self, limit: int | None) -> "UnlabelledTexts":
        """Returns the first `limit` texts."""
        return UnlabelledTexts(self.texts[:limit])
