"""Batches of a pack whose runs may train on different tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_jax.data.batches import TrainBatches
from lora_jax.data.tokens import Batch


class PackBatches:
    """The training batches of a pack: ``batches[step]`` is the `Batch` of that step, leaves ``[runs, batch, ...]``.

    Each run sees the examples of its own task, in the order that it sees them alone. At each step all runs are padded
    to the longest of their batches. Runs of one task always have batches of one length, so for them this adds nothing.

    Args:
      parts: the batches of each task's runs.
      runs: the places in the pack of each task's runs.
      one_length: whether every batch is padded to the longest length that occurs, so that one program trains all.
    """

    def __init__(self, parts: Sequence[TrainBatches], runs: Sequence[Sequence[int]], one_length: bool = False):
        self._parts = tuple(parts)
        self._order = np.argsort(np.concatenate([np.asarray(places, int) for places in runs]))
        counts = [part.steps_per_epoch for part, places in zip(parts, runs, strict=True) for _ in places]
        self.steps_per_epoch: list[int] = np.array(counts)[self._order].tolist()  # of each run
        self.batch = parts[0].batch
        shortest = max(min(part.lengths()) for part in self._parts)
        occurring = sorted({n for part in self._parts for n in part.lengths() if n >= shortest})
        self._lengths = tuple(occurring[-1:] if one_length else occurring)

    def lengths(self) -> tuple[int, ...]:
        """Returns the lengths that batches are padded to."""
        return self._lengths

    def length_at(self, step: int) -> int:
        """Returns the padded length of a step."""
        return max(self._lengths[0], *(part.length_at(step) for part in self._parts))

    def __getitem__(self, step: int) -> Batch:
        return self._join([part.at(step, self.length_at(step)) for part in self._parts])

    def example(self, length: int) -> Batch:
        """Returns a batch of the shapes that a step with this padded length has."""
        return self._join([part.at(0, length) for part in self._parts])

    def _join(self, batches: Sequence[Batch]) -> Batch:
        if len(batches) == 1:
            return batches[0]
        # Without types all tokens are of type 0, and without segments they are of one sequence.
        for name in ("types", "segments"):
            if any(getattr(batch, name) is not None for batch in batches):
                batches = [
                    batch if getattr(batch, name) is not None else batch._replace(**{name: np.zeros_like(batch.tokens)})
                    for batch in batches
                ]
        # The places of a batch that all of them leave empty stay empty.
        fields: Any = [
            None if parts[0] is None else np.concatenate(parts)[self._order] for parts in zip(*batches, strict=True)
        ]
        return Batch(*fields)
