"""Records one run: its files first, then every sink."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from lora_jax.errors import UserError, redact
from lora_jax.records import (
    RUN_FILE,
    MetricsFile,
    MetricsRecord,
    RunRecord,
    Summary,
    read_run,
    remove_summary,
    write_run,
    write_summary,
)
from lora_jax.tracking.sink import Sink

log = logging.getLogger(__name__)


class Tracker:
    """Writes one run's files, and gives the same records to its sinks.

    Many may be alive at once in one process. Use it as a context manager. A body that raises leaves no
    ``summary.json``, so the run counts as interrupted and can be resumed, and its sinks close with exit code 1.

    Args:
      folder: the run's folder. It is made if it is not there.
      run: the content of run.json. Its name is unique within `group`.
      group: the sweep.
      sinks: not started yet. One that raises is dropped with a warning.
      keep_until: resumes after this step: run.json is kept, and records of later steps are dropped from
        metrics.jsonl. None starts the files anew.
      warn: receives the warning about a sink that is dropped.

    Raises:
      UserError: another process is writing to `folder`, or its files cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        run: RunRecord,
        *,
        group: str,
        sinks: Sequence[Sink] = (),
        keep_until: int | None = None,
        warn: Callable[[str], None] = log.warning,
    ):
        self.folder, self._warn = Path(folder), warn
        self.folder.mkdir(parents=True, exist_ok=True)
        self._metrics = MetricsFile(self.folder, keep_until=keep_until)
        if keep_until is None or not (self.folder / RUN_FILE).exists():
            write_run(self.folder, run)
        remove_summary(self.folder)
        try:
            # A resumed run keeps its run.json, and so its id: W&B goes on with the same run.
            run = read_run(self.folder)
        except UserError:
            self._metrics.close()
            raise
        self.run_id = hashlib.sha256("\n".join([group, run.name, run.start_time or ""]).encode()).hexdigest()[:16]
        self._sinks = list(sinks)
        self._for_each_sink(lambda sink: sink.start(run, self.folder, group=group, run_id=self.run_id))

    def log(self, record: MetricsRecord) -> None:
        """Appends `record` to metrics.jsonl and gives it to the sinks."""
        self._metrics.append(record)
        self._for_each_sink(lambda sink: sink.log(record))

    def finish(self, summary: Summary, adapter: Path | None = None) -> None:
        """Writes summary.json, gives it to the sinks with the adapter's folder, and closes.

        A status other than "finished" and "stopped" closes the sinks with exit code 1.
        """
        write_summary(self.folder, summary)
        self._for_each_sink(lambda sink: sink.finish(summary, adapter))
        self.close(exit_code=0 if summary.status in ("finished", "stopped") else 1)

    def close(self, exit_code: int = 1) -> None:
        """Closes the files and the sinks. Without `finish` the run counts as interrupted."""
        self._metrics.close()
        self._for_each_sink(lambda sink: sink.close(exit_code))
        self._sinks = []

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._metrics.closed:
            self.close()

    def _for_each_sink(self, action: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                action(sink)
            except Exception as error:
                self._warn(redact(f"{sink.title} failed ({type(error).__name__}: {error}); going on without it"))
                self._sinks.remove(sink)
                with contextlib.suppress(Exception):
                    sink.close(1)
