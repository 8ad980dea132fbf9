"""Texts without labels, for language modelling."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class UnlabelledTexts:
    """One split: texts to model."""

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def classes(self) -> None:
        """Texts have no classes."""
        return None

    @property
    def content(self) -> list[Any]:
        """What the fingerprint covers."""
        return [self.texts]

    def scored(self, limit: int | None) -> "UnlabelledTexts":
        """Returns the first `limit` texts."""
        return UnlabelledTexts(self.texts[:limit])
