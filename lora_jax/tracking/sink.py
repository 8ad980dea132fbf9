"""What a sink of records is. Files are no sink: they are always written, and first.

A sink is one file beside this one with a session and a sink in it, its settings in RunConfig and SinkSettings, and one
row in SINKS (session.py).
"""

from pathlib import Path
from typing import Protocol

from lora_jax.config import WandbConfig
from lora_jax.records import MetricsRecord, RunRecord, Summary


class Sink(Protocol):
    """Receives the records of one run. Whatever a method raises ends this sink's part in the run, not the training.

    A method is called in a thread of its own. One that takes too long (bounded.py) ends the part of every sink of its
    session.
    """

    title: str  # as warnings name it

    def start(self, run: RunRecord, folder: Path, *, group: str, run_id: str) -> None:
        """Begins a run, or goes on with one.

        Args:
          run: the content of run.json.
          folder: the run's folder, where the sink may keep files of its own.
          group: the sweep.
          run_id: 16 hexadecimal digits. A resumed run keeps its own.
        """

    def log(self, record: MetricsRecord) -> None:
        """Receives a line of metrics.jsonl."""

    def finish(self, summary: Summary, adapter: Path | None) -> None:
        """Receives summary.json and the folder of the trained adapter, if there is one. `close` follows."""

    def close(self, exit_code: int) -> None:
        """Ends the run. 0: it has results; 1: it diverged, failed or was interrupted."""


class SinkSettings(Protocol):
    """The settings of every sink. RunConfig has them."""

    @property
    def wandb(self) -> WandbConfig: ...


class SinkSession(Protocol):
    """Makes the sinks of one kind for the runs of a sweep, and keeps what they share."""

    def sink(self, settings: SinkSettings) -> Sink | None:
        """Returns a sink for one more run, not started yet; None where the settings turn it off.

        Raises:
          UserError: the settings or the environment ask for something that there is not.
        """
