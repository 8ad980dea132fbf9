"""``stop=median``: the rule that ends runs which have fallen below the median of their pack. Needs no JAX.

The rule is a variant of the median stopping rule (Golovin et al., "Google Vizier", KDD 2017, section 3.2.2). From its
third validation on, a run is ended if its best validation figure is strictly worse than the median of the best figures
that the other runs of its pack have had by the same step. Vizier compares a trial's best with the median of the running
averages of complete trials. Here the others train beside it, so they are compared by their best at the same step. A run
that has ended counts with the best that it reached: otherwise the median would climb with every run that is ended,
until one were left. With fewer than two others nothing is ended, and never the run that is ahead.

The rule saves device time: once half of a pack has ended, the runs that are left go on in a smaller program, and packs
that wait begin sooner. A waiting run does not join a pack midway: it would need its own length at every step, and so a
program padded to the longest of all, for a chip that a pack too large to hold them all already keeps busy.

`lora_jax.analysis.stopping` replays the rule over sweeps that trained without it.
"""

import statistics
from collections.abc import Sequence

from lora_jax.metrics import better

VALIDATIONS_BEFORE_JUDGING = 3  # no run is ended before it has had so many
FEWEST_OTHER_RUNS = 2  # that a run is compared with


def below_median(metric: str, best: Sequence[float | None]) -> list[bool]:
    """Returns for each run whether its best value of `metric` is worse than the median of the others' best.

    A run that has no value yet, None, is neither below the median nor part of it.
    """

    def is_below(run: int, value: float | None) -> bool:
        others = [other for i, other in enumerate(best) if i != run and other is not None]
        return (
            value is not None and len(others) >= FEWEST_OTHER_RUNS and better(metric, statistics.median(others), value)
        )

    return [is_below(run, value) for run, value in enumerate(best)]


class MedianRule:
    """The best validation figure of every run of a pack, and which runs the rule ends.

    Args:
      metric: the name of the validation figure.
      runs: how many runs the pack has.
    """

    def __init__(self, metric: str, runs: int):
        self.metric = metric
        self.best: list[float | None] = [None] * runs
        self.validations = [0] * runs  # how many each run has had
        self._last_validation: list[int | None] = [None] * runs  # the step

    def record(self, run: int, step: int, value: float) -> bool:
        """Notes a run's validation after `step` updates. Returns whether it is the best that this run has had."""
        best = self.best[run]
        improved = best is None or better(self.metric, value, best)
        if improved:
            self.best[run] = value
        self.validations[run] += 1
        self._last_validation[run] = step
        return improved

    def restore(self, run: int, best: float | None, validations: int) -> None:
        """Puts a run where a checkpoint left it."""
        self.best[run], self.validations[run] = best, validations

    def ended_at(self, step: int, active: Sequence[bool]) -> list[int]:
        """Returns the runs that end at `step`, once all validations of `step` are recorded.

        Args:
          step: only runs that have just been validated, at this step, are judged.
          active: by run, whether it may be ended: it still trains, and asks for the rule.
        """
        return [
            run
            for run, below in enumerate(below_median(self.metric, self.best))
            if below
            and active[run]
            and self._last_validation[run] == step
            and self.validations[run] >= VALIDATIONS_BEFORE_JUDGING
        ]
