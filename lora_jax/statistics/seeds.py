"""Mean and spread of scores over seeds, and the standard error of one score from the size of its test set."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedScores:
    """The scores of runs that differ in nothing but their seed, at least one."""

    scores: tuple[float, ...]

    @classmethod
    def of(cls, scores: Sequence[float]) -> "SeedScores":
        """Returns `scores` as a value. Raises ValueError if there is none."""
        if not scores:
            raise ValueError("no score to summarise")
        return cls(tuple(scores))

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None for one seed."""
        return statistics.stdev(self.scores) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the mean over seeds, mean ± t(n-1)·std/sqrt(n) (Student, 1908).

        None for one seed. It takes the scores for normal and the test set for given.
        """
        if self.std is None:
            return None
        half = t_quantile(self.n - 1) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def share_standard_error(share: float, n: int) -> float:
    """Returns the standard error of a share of `n` examples, sqrt(p·(1-p)/n)."""
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"share={share}, n={n}: must be 0 to 1, and at least 1")
    return math.sqrt(share * (1 - share) / n)


def standard_error(values: Bool[np.ndarray, " examples"] | Float[np.ndarray, " examples"]) -> float | None:
    """Returns the standard error of the mean of `values`, one of each test example. None for fewer than two.

    It is sqrt(p·(1-p)/n) for 0/1 outcomes (bool), and the sample standard deviation over sqrt(n) for others.
    """
    n = len(values)
    if n < 2:
        return None
    if values.dtype == bool:
        return share_standard_error(float(values.mean()), n)
    return float(values.std(ddof=1, dtype=np.float64)) / math.sqrt(n)


def t_quantile(freedom: float) -> float:
    """Returns the t for which ±t covers 95% of Student's distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # takes half a second, which a sweep should not pay before it trains

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
