"""Sentences as words, and a tag for each word."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True, eq=False)
class TaggedWords:
    """One split. ``tags[i][j]`` belongs to ``words[i][j]``. A tag is a position in the task's list of labels."""

    words: list[list[str]]
    tags: list[list[int]]

    def __post_init__(self) -> None:
        if [len(words) for words in self.words] != [len(tags) for tags in self.tags]:
            raise ValueError("words and tags: must be one of each for every word")

    def __len__(self) -> int:
        return len(self.words)

    @property
    def classes(self) -> Int32[np.ndarray, " words"]:
        """The tags of all words."""
        return np.array(list(itertools.chain.from_iterable(self.tags)), np.int32)

    @property
    def content(self) -> list[Any]:
        """What the fingerprint covers."""
        return [self.words, self.tags]

    def scored(self, limit: int | None) -> "TaggedWords":
        """Returns the first `limit` sentences."""
        return TaggedWords(self.words[:limit], self.tags[:limit])


def group_by_text(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Returns the values of each text, of which text i has ``counts[i]``, one after another in `values`."""
    rest = iter(values)
    return [list(itertools.islice(rest, count)) for count in counts]
