"""Progress of a sweep on the console: a live table on a terminal, plain lines anywhere else."""

import math
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lora_jax.config.point import Point

SECONDS_PER_LINE = 10.0  # least time between lines of progress, without a terminal


class ProgressDisplay:
    """Displays the progress of the sweep, the current pack and each run. Use it as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._stage, self._stage_start, self._last_line = "starting", time.monotonic(), 0.0
        self._names: list[str] = []
        self._live = Live(console=self.console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> "ProgressDisplay":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays above the live table."""
        # Lines written to a file are not wrapped, because a file has no width.
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def stage(self, text: str) -> None:
        """Sets the current activity, such as loading, compiling or scoring."""
        if text == self._stage:
            return
        self._stage, self._stage_start = text, time.monotonic()
        if not self.console.is_terminal:
            self.say(text)

    def training(self, index: int, points: Sequence[Point], steps: np.ndarray, step: int) -> None:
        """Displays a pack that begins or continues at `step`. `steps` has the length of each run."""
        self._names = [point.name for point in points]
        self._pack, self._steps, self._step, self._first_step = index, steps, step, step
        self._loss: list[float] = [float("nan")] * len(points)
        self._valid: list[float | None] = [None] * len(points)
        self._tokens = [0] * len(points)
        self._start_time, self._last_line = time.monotonic(), 0.0
        self.stage(f"pack {index}: training {len(points)} run{'s' * (len(points) > 1)} from step {step}")

    def step(self, step: int, loss: np.ndarray, tokens: Sequence[int], seconds: float) -> None:
        """Updates the display after `step` updates.

        Args:
          step: the number of updates done.
          loss: the training loss of each run, shape ``[runs]``.
          tokens: the tokens that each run has trained on.
          seconds: the training time so far.
        """
        self._stage, self._step, self._loss = "training", step, [float(x) for x in loss]
        self._tokens_per_second = sum(tokens) / seconds
        if not self.console.is_terminal and (
            time.monotonic() - self._last_line > SECONDS_PER_LINE or step >= self._steps.max()
        ):
            self._last_line = time.monotonic()
            self.say(f"pack {self._pack}: {self._headline()}  loss: {self._losses()}")

    def valid(self, i: int, metric: float) -> None:
        """Displays the newest validation score of run `i`."""
        self._valid[i] = metric
        if not self.console.is_terminal:
            self.say(f"pack {self._pack}: {self._names[i]} validation {metric:.4f}")

    def _losses(self) -> str:
        """Returns each run's loss, or the least and the greatest of more than six. NaN counts as the greatest."""
        by_loss = sorted(zip(self._loss, self._names, strict=True), key=lambda item: (math.isnan(item[0]), item[0]))
        if len(by_loss) > 6:
            return f"{by_loss[0][0]:.3f} ({by_loss[0][1]}) to {by_loss[-1][0]:.3f} ({by_loss[-1][1]})"
        return "  ".join(f"{name} {x:.3f}" for name, x in zip(self._names, self._loss, strict=True))

    def _headline(self) -> str:
        total, done = int(self._steps.max()), self._step - self._first_step
        left = (time.monotonic() - self._start_time) / max(done, 1) * (total - self._step)
        return f"step {self._step}/{total}  {self._tokens_per_second:,.0f} tokens/s  {_clock(left)} left"

    def _render(self) -> Group:
        lines = [Text(f"{self._stage}  ({_clock(time.monotonic() - self._stage_start)})", style="dim")]
        if not self._names or self._step == self._first_step:
            return Group(*lines)
        table = Table(title=f"pack {self._pack}: {self._headline()}", title_justify="left", box=None, padding=(0, 2))
        for column, side in (("run", "left"), ("step", "right"), ("loss", "right"), ("validation", "right")):
            table.add_column(column, justify=side)  # type: ignore[arg-type]
        for name, steps, loss, valid in zip(self._names, self._steps, self._loss, self._valid, strict=True):
            score = "" if valid is None else f"{valid:.4f}"
            table.add_row(name, f"{min(self._step, steps)}/{steps}", f"{loss:.4f}", score)
        return Group(table, *lines)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
