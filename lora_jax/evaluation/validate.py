"""Validation while a pack trains: scores, the best parameters so far, and who falls behind."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool
from lora_jax.evaluation.evaluator import Evaluator, evaluate
from lora_jax.train.stopping import MIN_VALIDATIONS, below_median

from lora_jax.metrics import better
from lora_jax.train.loop import Training, choose_runs
from lora_jax.train.sharding import put_runs
from lora_jax.train.step import StepMetrics


@dataclasses.dataclass(frozen=True)
class Validate:
    """Scores every run that is due, and keeps the parameters of those that are better than they ever were.

    Attributes:
      due: the steps after which each run is validated; its last is one of them.
      select: the metric that says which validation is a run's best.
    """

    evaluators: Sequence[Evaluator]
    metrics: Sequence[str]
    select: str
    due: Sequence[set[int]]

    @classmethod
    def every(
        cls, interval: int, steps: Sequence[int], evaluators: Sequence[Evaluator], metrics: Sequence[str], select: str
    ) -> "Validate":
        """Returns a validation of each run every `interval` steps and at its end."""
        return cls(evaluators, metrics, select, [{*range(interval, last, interval), int(last)} for last in steps])

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Validates where a run is due, outside the training time."""
        progress = training.progress
        if not any(progress.step in steps for steps in self.due):
            return
        jax.block_until_ready(training.pack.state)
        progress.seconds = training.clock.seconds
        with training.clock.paused():
            self._validate(training)
            self._stop(training)

    def _validate(self, training: Training) -> None:
        progress, pack = training.progress, training.pack
        training.display.stage(
            f"step {progress.step}: scoring {len(training.setup.encoded['valid'])} validation examples"
        )
        scores = evaluate(self.evaluators, "valid", training, pack.state.params, self.metrics)
        improved = np.zeros(len(pack.points), bool)
        for run, figures in enumerate(scores):
            if not progress.live[run] or progress.step not in self.due[run] or progress.stopped[run]:
                continue
            training.write(run, {f"valid/{name}": value for name, value in figures.items()})
            training.display.valid(run, figures[self.select])
            best = progress.best[run]
            if best is None or better(self.select, figures[self.select], best[self.select]):
                improved[run], progress.best[run] = True, {"step": progress.step, **figures}
        training.best = choose_runs(put_runs(improved), pack.state.params, training.best)

    def _stop(self, training: Training) -> None:
        """Ends the runs that ask for it and have fallen below the median of their pack."""
        progress, pack, step = training.progress, training.pack, training.progress.step
        below = below_median(self.select, [best[self.select] if best else None for best in progress.best])
        last: dict[int, int] = {}
        for run in np.flatnonzero(training.unfinished() & below).tolist():
            validations = sum(due <= step for due in self.due[run])
            if pack.points[run].config.stop != "median" or step not in self.due[run] or validations < MIN_VALIDATIONS:
                continue
            last[run] = progress.stopped[run] = step
            name = pack.points[run].name
            training.display.say(f"pack {training.index}: {name} is below the median, ended at step {step}")
        training.set_last_step(last)
