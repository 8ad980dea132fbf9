"""What a task is: texts, what is asked of them, and how it is scored."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True, eq=False)
class Examples:
    """One split. `labels[i]` belongs to `texts[i]`: a place in the task's list of labels or, where the task is to
    write, the text to be written. A text that has several references is there once for each.
    """

    texts: list[str]
    labels: Int32[np.ndarray, " examples"] | list[str]

    def __post_init__(self):
        if np.shape(self.labels) != (len(self.texts),):
            raise ValueError(f"{len(self.texts)} texts, but labels of shape {np.shape(self.labels)}")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> "Examples":
        """Those at `rows`."""
        texts, labels = [self.texts[i] for i in rows], self.labels
        return Examples(texts, [labels[i] for i in rows] if isinstance(labels, list) else labels[np.asarray(rows, int)])


@dataclass(frozen=True, eq=False)
class Task:
    """A data set and how it is scored.

    `splits` has ``train``, ``valid`` and ``test``. `kind` is ``classification``, or ``generation`` (then `labels` is
    empty); see train/objective.py. `metric` is the figure that a table gives for the test split, and `select` the one
    on the validation split that says which evaluation was the best.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    select: str
    splits: Mapping[str, Examples]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the label names and every split's texts and labels, in order."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(json.dumps([name, split.texts, np.asarray(split.labels).tolist()]).encode())
        return digest.hexdigest()
