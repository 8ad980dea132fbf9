"""Where a process's wall time went. Standard library only: what it measures includes the imports."""

import statistics
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds by part since `began`, which is ``time.time()`` in the process that started this one."""

    def __init__(self, began: float):
        self.began = self._last = began
        self.parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Books the time since the last lap (or the start) on `part`."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self.began


def seconds_per_call(call: Callable[[], Any], wait: Callable[[Any], Any], blocks: int = 10) -> list[float]:
    """Seconds that a call takes, once for each of `blocks`: calls one behind the other, and one wait at their end.

    `call` starts work on a device and returns at once; `wait` takes what it returned and returns when that is done. A
    block is about a tenth of a second, so that the wait and the first call's start weigh little. Three calls go before.
    """
    for _ in range(2):
        wait(call())
    began = time.perf_counter()
    wait(call())
    calls = min(20, max(1, round(0.1 / (time.perf_counter() - began))))
    seconds = []
    for _ in range(blocks):
        began = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        seconds.append((time.perf_counter() - began) / calls)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "blocks": len(seconds)}
