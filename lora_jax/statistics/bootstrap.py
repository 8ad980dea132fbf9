"""The bootstrap over test examples (Efron, 1979), for metrics that are no means over examples."""

import numpy as np
from jaxtyping import Float, Shaped

from lora_jax.statistics.corpus import Answers, CorpusMetric

# Only the covariance of the scores is used, and 2,000 resamples give a standard deviation to 1.6% (1/sqrt(2·2000)).
RESAMPLES = 2_000
_SEED = 0
_CHUNK = 2_000_000  # weights at once


def bootstrap_scores(
    metric: CorpusMetric,
    labels: Shaped[np.ndarray, " examples"],
    predicted: Shaped[np.ndarray, "runs examples"],
    classes: int | None,
) -> Float[np.ndarray, "resamples runs"]:
    """Computes the metric of each run on RESAMPLES test sets, drawn from this one with replacement.

    A resample has the same examples for all runs. The draws depend on the examples alone, and not on the order of runs.
    """
    columns = np.stack([labels, *predicted], axis=1).astype(np.float64)
    # Examples that no run tells apart are drawn together: their number in a resample is multinomial.
    _, first, counts = np.unique(columns, axis=0, return_index=True, return_counts=True)
    first, counts = first[np.argsort(first)], counts[np.argsort(first)]
    draws, n = np.random.default_rng(_SEED), len(labels)
    size = max(1, _CHUNK // len(first))
    parts = []
    for start in range(0, RESAMPLES, size):
        weights = draws.multinomial(n, counts / n, min(size, RESAMPLES - start)).astype(np.float64)
        scores = [metric(Answers(labels[first], run[first], classes), weights) for run in predicted]
        parts.append(np.stack(scores, axis=1))
    return np.concatenate(parts)


def corpus_standard_error(metric: CorpusMetric, answers: Answers) -> float | None:
    """Returns the bootstrap's standard error of a run's metric. None for fewer than two examples."""
    if len(answers.labels) < 2:
        return None
    scores = bootstrap_scores(metric, answers.labels, answers.predicted[None], answers.classes)
    return float(scores.std(ddof=1))
