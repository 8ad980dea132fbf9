"""Progress of a pack. A checkpoint stores it beside the arrays, so that a resumed pack reports the same figures."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass
class Progress:
    """Progress of a pack. Lists have an entry per run."""

    step: int  # updates done
    live: list[bool]  # as of the last log; the device alone knows of later divergence
    tokens: list[int]
    train_loss: list[float | None]
    best: list[dict[str, float] | None]  # figures of the best validation so far, and its step under "step"
    stopped: list[int | None]  # the step at which the `stop` rule ended the run
    seconds: float  # training time, without compilation and scoring

    @classmethod
    def start(cls, runs: int) -> Self:
        """Returns the progress of a pack that has not trained yet."""
        return cls(0, [True] * runs, [0] * runs, [None] * runs, [None] * runs, [None] * runs, 0.0)

    def unfinished(self, steps: Int[np.ndarray, " runs"]) -> Bool[np.ndarray, " runs"]:
        """Returns a mask of the runs that are still training; `steps` is the length of each run."""
        return np.array(self.live) & (steps > self.step)

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON. ``Progress(**fields)`` is the inverse."""
        return dataclasses.asdict(self)


class Clock:
    """Measures training time in seconds, without pauses."""

    def __init__(self, seconds: float = 0.0):
        self._start_time = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start_time

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the body from the measured time."""
        start_time = time.monotonic()
        try:
            yield
        finally:
            self._start_time += time.monotonic() - start_time
