"""The difference of two runs, or of two groups of seeds, on the same test examples: interval and p-value.

README.md of this package says why the formulas are what they are.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped

from lora_jax.statistics.bootstrap import bootstrap_scores
from lora_jax.statistics.corpus import Answers, CorpusMetric
from lora_jax.statistics.seeds import t_quantile

Kind = Literal["examples", "examples and seeds"]


@dataclass(frozen=True)
class Difference:
    """The difference of a metric, first minus second.

    Attributes:
      value: the difference of the mean scores.
      low: the lower end of its 95% confidence interval.
      high: the upper end.
      p: the two-sided p-value of the hypothesis that there is no difference.
      n_examples: the number of test examples.
      n_seeds: the number of runs on each side.
      kind: the sources of noise that the interval covers.
    """

    value: float
    low: float
    high: float
    p: float
    n_examples: int
    n_seeds: tuple[int, int]
    kind: Kind

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def compare_means(
    a: Bool[np.ndarray, "a_runs examples"] | Float[np.ndarray, "a_runs examples"],
    b: Bool[np.ndarray, "b_runs examples"] | Float[np.ndarray, "b_runs examples"],
) -> Difference:
    """Compares runs by a metric that is the mean of a value per example, bool for 0/1 outcomes.

    The p-value of two single runs with 0/1 outcomes is that of McNemar's exact test.

    Raises:
      ValueError: the numbers of examples differ, or there are fewer than two.
    """
    n = _examples(a, b)
    value = float(a.mean(dtype=np.float64) - b.mean(dtype=np.float64))
    outcomes = np.concatenate([a, b]).astype(np.float64)
    if a.dtype == bool and b.dtype == bool:
        # Bonett & Price (2012): one more example that only `a` has right, and one that only `b` has.
        first = np.repeat([1.0, 0.0], [len(a), len(b)])
        outcomes = np.column_stack([outcomes, first, 1 - first])
        covariance, centre = np.cov(outcomes, bias=True) / (n + 2), value * n / (n + 2)
    else:
        covariance, centre = np.cov(outcomes) / n, value
    difference = _from_covariance(value, centre, covariance, a.mean(1), b.mean(1), n)
    if a.dtype == bool and b.dtype == bool and len(a) == len(b) == 1:
        return replace(difference, p=mcnemar(a[0], b[0]))
    return difference


def compare_corpus(
    metric: CorpusMetric,
    labels: Shaped[np.ndarray, " examples"],
    a: Shaped[np.ndarray, "a_runs examples"],
    b: Shaped[np.ndarray, "b_runs examples"],
    classes: int | None,
) -> Difference:
    """Compares runs by a metric of all examples together, from what each run predicted.

    The metric is recomputed on resampled test sets that are the same for all runs, so that the difference is paired
    (Koehn, 2004; Berg-Kirkpatrick et al., 2012).

    Raises:
      ValueError: the numbers of examples differ, or there are fewer than two.
    """
    n = _examples(a, b)
    runs = np.concatenate([a, b])
    once = np.ones((1, n))
    scores = np.array([metric(Answers(labels, run, classes), once)[0] for run in runs])
    covariance = np.cov(bootstrap_scores(metric, labels, runs, classes), rowvar=False)
    of_a, of_b = scores[: len(a)], scores[len(a) :]
    value = float(of_a.mean() - of_b.mean())
    return _from_covariance(value, value, covariance, of_a, of_b, n)


def mcnemar(a: Bool[np.ndarray, " examples"], b: Bool[np.ndarray, " examples"]) -> float:
    """Returns the two-sided p-value of McNemar's exact test (McNemar, 1947).

    Of the examples that exactly one run has right, the number that `a` has right is Binomial(·, 1/2) if both are
    equally good.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    from scipy.special import bdtr  # takes half a second, which a sweep should not pay before it trains

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _examples(a: Shaped[np.ndarray, "a_runs examples"], b: Shaped[np.ndarray, "b_runs examples"]) -> int:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] < 2 or not len(a) or not len(b):
        raise ValueError(f"shapes {a.shape} and {b.shape}: must be [runs, examples], of the same two or more examples")
    return int(a.shape[1])


def _from_covariance(
    value: float,
    centre: float,
    covariance: Float[np.ndarray, "runs runs"],
    a: Float[np.ndarray, " a_runs"],
    b: Float[np.ndarray, " b_runs"],
    n: int,
) -> Difference:
    """Returns the difference with an interval of Student's t, over examples and, with several on both sides, seeds.

    Args:
      value: the difference.
      centre: the middle of the interval.
      covariance: of all runs' scores, those of `a` first, over draws of the test examples.
      a: the scores of the first side.
      b: the scores of the second side.
      n: the number of examples.
    """
    contrast = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
    examples = max(0.0, float(contrast @ covariance @ contrast))
    variance, squares = examples, examples**2 / (n - 1)
    both = len(a) > 1 and len(b) > 1
    if both:
        seeds = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
        # What seeds differ by on these very examples is in `examples` already.
        shared = _interaction(covariance[: len(a), : len(a)]) + _interaction(covariance[len(a) :, len(a) :])
        variance += max(0.0, sum(seeds) - shared)
        squares += seeds[0] ** 2 / (len(a) - 1) + seeds[1] ** 2 / (len(b) - 1)
    if variance > 0:
        from scipy.special import stdtr  # see above

        freedom = variance**2 / squares  # Satterthwaite, 1946
        error = math.sqrt(variance)
        half, p = t_quantile(freedom) * error, 2 * float(stdtr(freedom, -abs(centre) / error))
    else:
        half, p = 0.0, float(centre == 0)
    return Difference(
        value, centre - half, centre + half, p, n, (len(a), len(b)), "examples and seeds" if both else "examples"
    )


def _interaction(covariance: Float[np.ndarray, "runs runs"]) -> float:
    """Returns the part of the variance of the runs' mean that is not common to the runs, over draws of examples."""
    runs = len(covariance)
    return float(np.trace(covariance) - covariance.sum() / runs) / (runs - 1) / runs
