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
    def labels(self) -> Int32[np.ndarray, " words"]:
        """The tags of all words."""
        return np.array(list(itertools.chain.from_iterable(self.tags)), np.int32)

    def content(self) -> list[Any]:
        """Returns the words and their tags. Fingerprints hash it."""
        return [self.words, self.tags]

    def take(self, rows: Sequence[int]) -> "TaggedWords":
        """Returns the sentences at `rows`, in that order."""
        return TaggedWords([self.words[row] for row in rows], [self.tags[row] for row in rows])

    def join(self, other: "TaggedWords") -> "TaggedWords":
        """Returns these sentences, and then those of `other`."""
        return TaggedWords(self.words + other.words, self.tags + other.tags)

    def scored(self, limit: int | None) -> "TaggedWords":
        """Returns the first `limit` sentences."""
        return TaggedWords(self.words[:limit], self.tags[:limit])


def group_by_text(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Returns the values of each text, of which text i has ``counts[i]``, one after another in `values`."""
    rest = iter(values)
    return [list(itertools.islice(rest, count)) for count in counts]
