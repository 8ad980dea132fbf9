"""Differences of the headline metric between runs, by what each answered to the same test examples, and in words."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_jax.records.outcomes import Outcomes
from lora_jax.report.rows import Row
from lora_jax.statistics import (
    Answers,
    Difference,
    SeedScores,
    compare_corpus,
    compare_means,
    corpus_metric,
    corpus_standard_error,
    share_standard_error,
    standard_error,
)

INDISTINGUISHABLE = "not distinguishable"


@dataclass(frozen=True)
class Gap:
    """The difference of the headline metric, first minus second, of groups of runs that differ in their seeds.

    Attributes:
      first: the scores of the first group.
      second: the scores of the second.
      difference: the same with its interval; None where the runs did not keep what they answered, or were tested on
        different examples.
    """

    first: SeedScores
    second: SeedScores
    difference: Difference | None

    @property
    def value(self) -> float:
        return self.first.mean - self.second.mean

    @property
    def scale(self) -> int:
        """100 where scores are shares, so that differences are in points."""
        return 100 if max(abs(self.first.mean), abs(self.second.mean)) <= 1 else 1

    def cell(self) -> str:
        """Returns the text of a table: "+1.0 [0.2, 1.9]", or without an interval where none is known."""
        text = _signed(self.scale * self.value, "+")
        if self.difference is None:
            return text
        ends = (_signed(self.scale * end) for end in (self.difference.low, self.difference.high))
        remark = "" if self.difference.distinguishable else f" {INDISTINGUISHABLE}"
        return f"{text} [{', '.join(ends)}]{remark}"

    def clause(self) -> str:
        """Returns how the second compares to the first: "1.0 points lower, 95% CI 0.2 to 1.9"."""
        size = self.scale * abs(self.value)
        amount = f"{size:.1f} points" if size >= 0.05 else "less than 0.1 points"
        text = f"{amount} {'lower' if self.value > 0 else 'higher'}" if size else "the same"
        return text + (self._without_interval() if self.difference is None else self._interval(self.difference))

    def _interval(self, difference: Difference) -> str:
        ends = [self.scale * difference.low, self.scale * difference.high]
        if self.value < 0:
            ends = [-ends[1], -ends[0]]
        interval = f"95% CI {_rounded(ends[0])} to {_rounded(ends[1])}"
        return f", {interval}" if difference.distinguishable else f", {INDISTINGUISHABLE}: {interval}"

    def _without_interval(self) -> str:
        spreads = [side.std for side in (self.first, self.second) if side.std is not None]
        if self.value == 0:
            return ""
        if len(spreads) == 2 and abs(self.value) < max(spreads):
            return ", within the spread of the seeds"
        return "" if spreads else ", one seed each"


def gap(first: Sequence[Row], second: Sequence[Row], split: str) -> Gap | None:
    """Returns the difference between two groups of runs on a split; None if one of them has no score there."""
    scores = [[score for row in side if (score := row.score(split)) is not None] for side in (first, second)]
    if not all(scores):
        return None
    sides = [tuple(row.outcomes for row in side if row.outcomes is not None) for side in (first, second)]
    complete = split == "test" and len(sides[0]) == len(first) and len(sides[1]) == len(second)
    metric = first[0].metric
    observed = Gap(SeedScores.of(scores[0]), SeedScores.of(scores[1]), None)
    difference = _compare(metric, *sides) if complete and metric is not None else None
    # Another version of the program may have recorded another definition of the metric.
    if difference is None or not math.isclose(difference.value, observed.value, rel_tol=1e-3, abs_tol=1e-3):
        return observed
    return replace(observed, difference=difference)


def standard_error_of(row: Row) -> float | None:
    """Returns the standard error of a run's test score that comes from the size of its test set.

    A run that did not keep what it answered has one if the metric is accuracy.
    """
    score = row.score("test")
    if score is None or row.metric is None:
        return None
    if row.outcomes is not None:
        return _standard_error(row.metric, row.outcomes)
    count = row.run.data.examples.get("test")
    if row.metric != "accuracy" or not count or not 0 <= score <= 1:
        return None
    return share_standard_error(score, count)


@functools.lru_cache(maxsize=4096)  # the page has each comparison several times
def _compare(metric: str, first: tuple[Outcomes, ...], second: tuple[Outcomes, ...]) -> Difference | None:
    runs = (*first, *second)
    shared = {(run.fingerprint, run.examples, run.classes) for run in runs}
    if len(shared) > 1 or runs[0].examples < 2:
        return None
    if all(metric in run.per_example for run in runs):
        values = ([run.per_example[metric] for run in side] for side in (first, second))
        return compare_means(*map(np.stack, values))
    labels, predicted = runs[0].labels, [run.predicted for run in runs if run.predicted is not None]
    compute = corpus_metric(metric, runs[0].classes)
    if compute is None or labels is None or len(predicted) < len(runs):
        return None
    sides = np.stack(predicted[: len(first)]), np.stack(predicted[len(first) :])
    return compare_corpus(compute, labels, *sides, runs[0].classes)


@functools.lru_cache(maxsize=4096)
def _standard_error(metric: str, run: Outcomes) -> float | None:
    if metric in run.per_example:
        return standard_error(run.per_example[metric])
    compute = corpus_metric(metric, run.classes)
    if compute is None or run.labels is None or run.predicted is None:
        return None
    return corpus_standard_error(compute, Answers(run.labels, run.predicted, run.classes))


def _rounded(value: float) -> str:
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def _signed(value: float, plus: str = "") -> str:
    """Formats a number of points, with a minus sign in place of a hyphen: +1.0, −0.6."""
    text = _rounded(value)
    return text.replace("-", "−") if text.startswith("-") else plus + text
