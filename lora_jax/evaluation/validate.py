"""Validation while a pack trains: scores, the best parameters so far, and who falls behind."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool
from lora_jax.evaluation.evaluator import Evaluator, evaluate
from lora_jax.train.stopping import MedianRule

from lora_jax.train.loop import Training, choose_runs
from lora_jax.train.progress import Progress
from lora_jax.train.sharding import put_runs
from lora_jax.train.step import StepMetrics


@dataclasses.dataclass(frozen=True)
class Validate:
    """Scores every run that is due, and keeps the parameters of those that are better than they ever were.

    Attributes:
      due: the steps after which each run is validated; its last is one of them.
      rule: knows the best of every run so far, by the metric that selects, and which runs have fallen behind.
    """

    evaluators: Sequence[Evaluator]
    metrics: Sequence[str]
    rule: MedianRule
    due: Sequence[set[int]]

    @classmethod
    def every(
        cls, interval: int, steps: Sequence[int], evaluators: Sequence[Evaluator], metrics: Sequence[str], select: str
    ) -> "Validate":
        """Returns a validation of each run every `interval` steps and at its end."""
        due = [{*range(interval, last, interval), int(last)} for last in steps]
        return cls(evaluators, metrics, MedianRule(select, len(steps)), due)

    def restore(self, progress: Progress) -> None:
        """Puts the rule where a resumed pack was."""
        for run, best in enumerate(progress.best):
            validations = sum(due <= progress.step for due in self.due[run])
            self.rule.restore(run, best[self.rule.metric] if best else None, validations)

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
            training.display.valid(run, figures[self.rule.metric])
            if self.rule.record(run, progress.step, figures[self.rule.metric]):
                improved[run], progress.best[run] = True, {"step": progress.step, **figures}
        training.best = choose_runs(put_runs(improved), pack.state.params, training.best)

    def _stop(self, training: Training) -> None:
        """Ends the runs that ask for it and have fallen below the median of their pack."""
        progress, points = training.progress, training.pack.points
        active = training.unfinished() & [point.config.stop == "median" for point in points]
        ended = self.rule.ended_at(progress.step, active.tolist())
        for run in ended:
            progress.stopped[run] = progress.step
            message = f"{points[run].name} is below the median, ended at step {progress.step}"
            training.display.say(f"pack {training.index}: {message}")
        training.set_last_step(dict.fromkeys(ended, progress.step))
