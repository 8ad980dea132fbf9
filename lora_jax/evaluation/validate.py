"""Validation while a pack trains: scores, the best parameters so far, and which runs fall behind."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int

from lora_jax.evaluation.scoring import score_runs
from lora_jax.metrics import Scoring
from lora_jax.train.evaluator import TaskEvaluators
from lora_jax.train.loop import Training
from lora_jax.train.pack import choose_runs
from lora_jax.train.progress import Progress
from lora_jax.train.sharding import put_runs
from lora_jax.train.step import StepMetrics
from lora_jax.train.stopping import MedianRule


@dataclasses.dataclass(frozen=True)
class Validate:
    """Scores every run that is due, and keeps the parameters of those that are better than they ever were.

    Attributes:
      scorings: each run's metrics, and the one that says which validation is its best.
      due: the steps after which each run is validated; its last is one of them.
      rules: by metric, the best of every run that is selected by it, and which of them fall behind the others.
    """

    evaluators: Sequence[TaskEvaluators]
    scorings: Sequence[Scoring]
    due: Sequence[set[int]]
    rules: Mapping[str, MedianRule]

    @classmethod
    def every(
        cls,
        intervals: Sequence[int],
        steps: Int[np.ndarray, " runs"],
        evaluators: Sequence[TaskEvaluators],
        scorings: Sequence[Scoring],
    ) -> "Validate":
        """Returns a validation of each run at its interval in steps, and at its end."""
        due = [
            {*range(interval, last, interval), last} for interval, last in zip(intervals, steps.tolist(), strict=True)
        ]
        rules = {metric: MedianRule(metric, len(due)) for metric in {scoring.select for scoring in scorings}}
        return cls(evaluators, scorings, due, rules)

    def restore(self, progress: Progress) -> None:
        """Puts the rules where a resumed pack was."""
        for run, (best, scoring) in enumerate(zip(progress.best, self.scorings, strict=True)):
            validations = sum(step <= progress.step for step in self.due[run])
            self.rules[scoring.select].restore(run, best[scoring.select] if best else None, validations)

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
        progress, params = training.progress, training.pack.state.params
        prefix = f"step {progress.step}: "
        scores = score_runs(training, self.evaluators, self.scorings, "valid", params, prefix=prefix)
        improved = np.zeros(len(scores), bool)
        for run, (figures, _) in enumerate(scores):
            if not progress.live[run] or progress.step not in self.due[run] or progress.stopped[run]:
                continue
            training.write(run, {f"valid/{name}": value for name, value in figures.items()})
            select = self.scorings[run].select
            training.display.valid(run, figures[select])
            if self.rules[select].record(run, progress.step, figures[select]):
                improved[run], progress.best[run] = True, {"step": progress.step, **figures}
        training.best = choose_runs(put_runs(improved), params, training.best)

    def _stop(self, training: Training) -> None:
        """Ends the runs that ask for it and have fallen below the median of their pack."""
        progress, points = training.progress, training.pack.points
        active = training.unfinished() & [point.config.stop == "median" for point in points]
        ended = [run for rule in self.rules.values() for run in rule.ended_at(progress.step, active.tolist())]
        for run in ended:
            progress.stopped[run] = progress.step
            message = f"{points[run].name} is below the median, ended at step {progress.step}"
            training.display.say(f"pack {training.index}: {message}")
        training.set_last_step(dict.fromkeys(ended, progress.step))
