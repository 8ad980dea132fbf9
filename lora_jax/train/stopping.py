"""``stop=median``: the rule that ends runs which have fallen below the median of their pack. Needs no JAX.

The rule is a variant of the median stopping rule (Golovin et al., "Google Vizier", KDD 2017, section 3.2.2). From its
third validation on, a run is ended if its best validation figure is strictly worse than the median of the best figures
that the other runs of its pack have had by the same step. Vizier compares a trial's best with the median of the running
averages of complete trials. Here the others train beside it, so they are compared by their best at the same step. A run
that has ended counts with its best figure. Otherwise the median would rise with every run that is ended, until one run
were left. With fewer than two other runs no run is ended, and the best run is never ended.

The rule saves device time: once half of a pack has ended, the unfinished runs continue in a smaller program, and the
next packs start sooner. A waiting run does not join a pack midway. It would need its own padded length at every step,
and so a program padded to the longest of all, on a device that the pack already fills.

`lora_jax.analysis.stopping` replays the rule over sweeps that trained without it.
"""

import statistics
from collections.abc import Sequence

from lora_jax.metrics import better

VALIDATIONS_BEFORE_JUDGING = 3  # a run is not ended before this many validations
FEWEST_OTHER_RUNS = 2  # needed for a comparison


def below_median(metric: str, best: Sequence[float | None]) -> list[bool]:
    """Returns for each run whether its best value of `metric` is worse than the median of the others' best.

    A run without a value yet, None, is neither below the median nor part of it.
    """

    def is_below(run: int, value: float | None) -> bool:
        others = [other for i, other in enumerate(best) if i != run and other is not None]
        return (
            value is not None and len(others) >= FEWEST_OTHER_RUNS and better(metric, statistics.median(others), value)
        )

    return [is_below(run, value) for run, value in enumerate(best)]


class MedianRule:
    """Records the best validation figure of every run of a pack, and determines the runs to end.

    Args:
      metric: the name of the validation figure.
      runs: the number of runs of the pack.
    """

    def __init__(self, metric: str, runs: int):
        self.metric = metric
        self.best: list[float | None] = [None] * runs
        self.validations = [0] * runs  # the number of validations of each run
        self._last_validation: list[int | None] = [None] * runs  # the step of each run's last validation

    def record(self, run: int, step: int, value: float) -> bool:
        """Records a run's validation after `step` updates. Returns whether it is the best of this run so far."""
        best = self.best[run]
        improved = best is None or better(self.metric, value, best)
        if improved:
            self.best[run] = value
        self.validations[run] += 1
        self._last_validation[run] = step
        return improved

    def restore(self, run: int, best: float | None, validations: int) -> None:
        """Restores the record of a run from a checkpoint."""
        self.best[run], self.validations[run] = best, validations

    def ended_at(self, step: int, active: Sequence[bool]) -> list[int]:
        """Returns the runs that end at `step`, once all validations of `step` are recorded.

        Args:
          step: the current step. Only runs validated at this step are considered.
          active: for each run, whether it may be ended: it is unfinished and its settings have ``stop=median``.
        """
        return [
            run
            for run, below in enumerate(below_median(self.metric, self.best))
            if below
            and active[run]
            and self._last_validation[run] == step
            and self.validations[run] >= VALIDATIONS_BEFORE_JUDGING
        ]
