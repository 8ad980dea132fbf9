"""Callbacks of every training: they log metrics and save checkpoints. `loop.Callback` has the contract."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool

from lora_jax.train import record
from lora_jax.train.loop import Training
from lora_jax.train.step import StepMetrics


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


@dataclasses.dataclass(frozen=True)
class SaveCheckpoints:
    """Saves a checkpoint of the pack every `every` steps while any run is unfinished."""

    every: int

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Saves a checkpoint if one is due after this step."""
        if training.progress.step % self.every == 0 and training.unfinished().any():
            training.progress.seconds = training.clock.seconds
            training.save_checkpoint()
