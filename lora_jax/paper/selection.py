"""The rules that turn runs into figures: best epoch, best learning rate, best adapter, one figure of several seeds.

For GLUE the paper reports the median over 5 seeds, each run at its best epoch, and for E2E the mean over 3 seeds, each
at its best epoch (arXiv 2106.09685, appendix D).
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from lora_jax.metrics import better
from lora_jax.paper.results import RunResult


@dataclasses.dataclass(frozen=True)
class SeedFigure:
    """One figure of several seeds.

    Attributes:
      value: the median or the mean.
      spread: the sample standard deviation (n - 1); None for one seed.
      seeds: how many seeds there are.
    """

    value: float
    spread: float | None
    seeds: int


def best_epoch(run: RunResult) -> int | None:
    """Returns the step of the best validation of `run`, the first of equals; None without a finite one."""
    best: tuple[int, float] | None = None
    for step, value in run.validations:
        if math.isfinite(value) and (best is None or better(run.select, value, best[1])):
            best = step, value
    return None if best is None else best[0]


def best_run(runs: Iterable[RunResult]) -> RunResult | None:
    """Returns the run with the best validation at its best epoch, the first of equals; None if none has finished."""
    best: RunResult | None = None
    for run in runs:
        score = run.selection_score
        if run.status != "finished" or score is None:
            continue
        if best is None or better(run.select, score, best.selection_score or math.nan):
            best = run
    return best


def summarise(scores: Sequence[float], rule: str) -> SeedFigure | None:
    """Returns the figure of several seeds by `rule`, ``median`` or ``mean``; None without a score."""
    if not scores:
        return None
    value = statistics.median(scores) if rule == "median" else statistics.fmean(scores)
    return SeedFigure(value, statistics.stdev(scores) if len(scores) > 1 else None, len(scores))
