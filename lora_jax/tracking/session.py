"""The sinks that there are, and what they share during a sweep."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from lora_jax.records import RunRecord
from lora_jax.tracking.bounded import LIMIT_SECONDS, Bound, BoundedSink
from lora_jax.tracking.sink import SinkSession, SinkSettings
from lora_jax.tracking.tracker import Tracker
from lora_jax.tracking.wandb import WandbSession

log = logging.getLogger(__name__)

SINKS: Mapping[str, Callable[[], SinkSession]] = {
    "wandb": WandbSession,
}


class TrackingSession:
    """Opens the trackers of a sweep. Make one for each sweep: it remembers what failed and what was warned of.

    Args:
      seconds: the longest time that a call of a sink may take.
    """

    def __init__(self, seconds: float = LIMIT_SECONDS) -> None:
        self._sessions = [(make(), Bound(seconds)) for make in SINKS.values()]
        self._warnings: set[str] = set()

    def tracker(
        self,
        folder: Path,
        run: RunRecord,
        *,
        group: str,
        settings: SinkSettings,
        keep_until: int | None = None,
    ) -> Tracker:
        """Returns the tracker of one run, with every sink that `settings` ask for. The arguments are Tracker's.

        Raises:
          UserError: as Tracker and the sinks do.
        """
        sinks = [
            BoundedSink(sink, bound)
            for session, bound in self._sessions
            if (sink := session.sink(settings)) is not None and not bound.hangs
        ]
        return Tracker(folder, run, group=group, sinks=sinks, keep_until=keep_until, warn=self._warn_once)

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            log.warning(message)
