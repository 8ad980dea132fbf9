"""Bounds the time of every call of a sink: a service that hangs must not stop the training."""

import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path

from lora_jax.records import MetricsRecord, RunRecord, Summary
from lora_jax.tracking.sink import Sink

LIMIT_SECONDS = 150.0  # longer than a sink's own limits, such as the 120 s for W&B's last upload


class Bound:
    """Limits the calls of all sinks of one kind. After one call that hangs, every later call fails at once.

    Args:
      seconds: the longest time that a call may take.

    Attributes:
      hangs: whether a call has taken longer.
    """

    def __init__(self, seconds: float = LIMIT_SECONDS):
        self._seconds = seconds
        self.hangs = False

    def call(self, action: Callable[[], None]) -> None:
        """Calls `action` in a thread of its own and waits for its end.

        Raises:
          TimeoutError: `action` takes longer, and is left alone; or an earlier one did.
        """
        if self.hangs:
            raise self._error()
        future: concurrent.futures.Future[None] = concurrent.futures.Future()

        def work() -> None:
            try:
                action()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

        # A daemon: the end of the process does not wait for it.
        threading.Thread(target=work, daemon=True).start()
        concurrent.futures.wait([future], self._seconds)
        if not future.done():
            self.hangs = True
            raise self._error()
        future.result()

    def _error(self) -> TimeoutError:
        return TimeoutError(f"no answer in {self._seconds:g} s")


class BoundedSink:
    """A sink whose calls return in time, or raise TimeoutError."""

    def __init__(self, sink: Sink, bound: Bound):
        self.title = sink.title
        self._sink, self._bound = sink, bound

    def start(self, run: RunRecord, folder: Path, *, group: str, run_id: str) -> None:
        self._bound.call(lambda: self._sink.start(run, folder, group=group, run_id=run_id))

    def log(self, record: MetricsRecord) -> None:
        self._bound.call(lambda: self._sink.log(record))

    def finish(self, summary: Summary, adapter: Path | None) -> None:
        self._bound.call(lambda: self._sink.finish(summary, adapter))

    def close(self, exit_code: int) -> None:
        self._bound.call(lambda: self._sink.close(exit_code))
