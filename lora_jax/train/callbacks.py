"""Callbacks of every training: they log metrics and save checkpoints. `loop.Callback` has the contract."""

import dataclasses
import time
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool

from lora_jax.train import record
from lora_jax.train.loop import Training
from lora_jax.train.step import StepMetrics

AUTO_SECONDS = 60.0  # between checkpoints, where no number of steps is given


@dataclasses.dataclass(frozen=True)
class LogMetrics:
    """Logs the training metrics of every run at the first step, every `every` steps, and at the run's last step."""

    every: int

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Logs the metrics of this step if it is one of those steps."""
        progress = training.progress
        ending = training.pack.steps == progress.step
        if progress.step % self.every and progress.step != 1 and not ending.any():
            return
        metrics = jax.device_get(metrics)  # waits for the step, so the clock must be read afterwards
        progress.seconds = training.clock.seconds
        progress.live = np.asarray(metrics.live).tolist()
        for run in np.flatnonzero(active).tolist():
            progress.train_loss[run] = float(metrics.loss[run])
            training.write(run, record.train_figures(metrics, run, progress.tokens[run] / progress.seconds))
        training.display.step(progress.step, np.asarray(metrics.loss), progress.tokens, progress.seconds)


@dataclasses.dataclass
class SaveCheckpoints:
    """Saves a checkpoint of the pack every `every` steps, or every minute, while any run is unfinished.

    A checkpoint takes as long as dozens of small steps, and a pack that trains for less than a minute needs none.

    Attributes:
      every: the number of steps, or ``auto`` for every minute.
      saved_time: the time of the newest checkpoint, or of the start of training.
    """

    every: int | Literal["auto"]
    saved_time: float = dataclasses.field(default_factory=time.monotonic)

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Saves a checkpoint if one is due after this step."""
        if self.every == "auto":
            due = time.monotonic() - self.saved_time >= AUTO_SECONDS
        else:
            due = training.progress.step % self.every == 0
        if due and training.unfinished().any():
            training.progress.seconds = training.clock.seconds
            training.save_checkpoint()
            self.saved_time = time.monotonic()
