"""What a resumed pack must know beside its arrays to report the same figures."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass
class Progress:
    """How far a pack has come; lists are by run."""

    step: int
    live: list[bool]  # as of the last log: what has diverged since is known to the device only
    tokens: list[int]
    train_loss: list[float | None]
    best: list[dict[str, float] | None]  # the best validation so far: its figures, and its step under "step"
    stopped: list[int | None]  # the step at which `stop` ended a run
    seconds: float  # of training, without compiling and scoring

    @classmethod
    def start(cls, runs: int) -> Self:
        """Returns the progress of a pack that has not trained yet."""
        return cls(0, [True] * runs, [0] * runs, [None] * runs, [None] * runs, [None] * runs, 0.0)

    def unfinished(self, steps: Int[np.ndarray, " runs"]) -> Bool[np.ndarray, " runs"]:
        """Returns a mask of the runs that are still training; `steps` is how long each trains."""
        return np.array(self.live) & (steps > self.step)

    def as_json(self) -> dict[str, Any]:
        """Returns what `Progress` can be made from again."""
        return dataclasses.asdict(self)


class Clock:
    """Measures training time in seconds, pauses left out."""

    def __init__(self, seconds: float = 0.0):
        self._start_time = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start_time

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time that the body takes out of the count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._start_time += time.monotonic() - began
