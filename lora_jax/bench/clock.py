"""Measures the wall time of the parts of a process. It imports the standard library only, because it times imports."""

import statistics
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Measures seconds by part.

    Args:
      start_time: ``time.time()`` when the parent started this process.
    """

    def __init__(self, start_time: float):
        self.start_time = self._last = start_time
        self.parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Adds the time since the last lap, or since the start, to `part`."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Returns the seconds from the start to the last lap."""
        return self._last - self.start_time


def seconds_per_call(call: Callable[[], Any], wait: Callable[[Any], Any], blocks: int = 10) -> list[float]:
    """Measures the seconds per call, in blocks of calls with one wait at the end of each block.

    A block takes about a tenth of a second, so that the wait and the start of the first call contribute little. Three
    calls warm up.

    Args:
      call: dispatches work to a device and returns at once.
      wait: waits for the result of a call.
      blocks: the number of blocks.

    Returns:
      The seconds per call of each block.
    """
    for _ in range(2):
        wait(call())
    block_start = time.perf_counter()
    wait(call())
    calls = min(20, max(1, round(0.1 / (time.perf_counter() - block_start))))
    seconds = []
    for _ in range(blocks):
        block_start = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        seconds.append((time.perf_counter() - block_start) / calls)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Returns the median, the least, the greatest, and the number of blocks."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "blocks": len(seconds)}
