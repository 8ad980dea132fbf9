"""The callbacks that every training has: what is logged, and what is kept for a restart. See loop.Callback."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool

from lora_jax.train import record
from lora_jax.train.loop import Training
from lora_jax.train.step import StepMetrics


@dataclasses.dataclass(frozen=True)
class LogMetrics:
    """Logs every run's training figures at the first step, every so many steps, and at its last."""

    every: int

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Reads the step's metrics where they are due."""
        progress = training.progress
        ending = training.pack.steps == progress.step
        if progress.step % self.every and progress.step != 1 and not ending.any():
            return
        metrics = jax.device_get(metrics)  # waits for the step, so the clock is read after it
        progress.seconds = training.clock.seconds
        progress.live = np.asarray(metrics.live).tolist()
        for run in np.flatnonzero(active).tolist():
            progress.train_loss[run] = float(metrics.loss[run])
            training.write(run, record.train_figures(metrics, run, progress.tokens[run] / progress.seconds))
        training.display.step(progress.step, np.asarray(metrics.loss), progress.tokens, progress.seconds)


@dataclasses.dataclass(frozen=True)
class SaveCheckpoints:
    """Saves the pack every so many steps, while there is something left to train."""

    every: int

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Saves where a checkpoint is due."""
        if training.progress.step % self.every == 0 and training.unfinished().any():
            training.progress.seconds = training.clock.seconds
            training.save_checkpoint()
