"""Where a process's wall time went. Standard library only: what it measures includes the imports."""

import time


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
