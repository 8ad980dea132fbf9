"""What a task is: texts, labels, and how it is scored."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True, eq=False)
class Examples:
    """One split: `texts[i]` has the label `labels[i]`, a place in the task's list of labels."""

    texts: list[str]
    labels: Int32[np.ndarray, " examples"]

    def __post_init__(self):
        if self.labels.shape != (len(self.texts),):
            raise ValueError(f"{len(self.texts)} texts, but labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Task:
    """A data set and how it is scored: `metric` is a name in `lora_jax.metrics.METRICS`, higher being better.

    `splits` has ``train``, ``valid`` and ``test``; `kind` is ``classification``.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    splits: Mapping[str, Examples]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the label names and every split's texts and labels, in order."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(json.dumps([name, split.texts, split.labels.tolist()]).encode())
        return digest.hexdigest()
