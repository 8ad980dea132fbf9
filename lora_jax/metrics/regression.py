"""Metrics of numbers."""

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.metric import Predictions


def mean_squared_error(predictions: Predictions) -> float:
    """Returns the mean over examples of (value - label)². Raises ValueError if the shapes disagree or are empty."""
    return float(squared_errors(predictions).mean())


def squared_errors(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Returns (value - label)² of each example. Raises ValueError if the shapes disagree or are empty."""
    values, labels = _values_and_labels(predictions)
    squares: np.ndarray = (values - labels) ** 2
    return squares


def pearson(predictions: Predictions) -> float:
    """Returns Pearson's correlation of values and labels, from -1 to 1.

    As `matthews` it is 0 where all values, or all labels, are one number. It is NaN where one of them is not finite.
    Raises ValueError if the shapes disagree or are empty.
    """
    return _correlation(*_values_and_labels(predictions))


def spearman(predictions: Predictions) -> float:
    """Returns Spearman's rank correlation: Pearson's of the ranks. Equal numbers share the average of their ranks.

    It is 0 where all values, or all labels, are one number. It is NaN where one of them is NaN. Raises ValueError if
    the shapes disagree or are empty.
    """
    from scipy import stats

    values, labels = _values_and_labels(predictions)
    return _correlation(stats.rankdata(values), stats.rankdata(labels))


def _correlation(x: Float[np.ndarray, " examples"], y: Float[np.ndarray, " examples"]) -> float:
    from scipy import stats  # takes a second, which only a regression should pay

    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    return float(stats.pearsonr(x, y).statistic)


def _values_and_labels(
    predictions: Predictions,
) -> tuple[Float[np.ndarray, " examples"], Float[np.ndarray, " examples"]]:
    values, labels = np.asarray(predictions.values, np.float64), np.asarray(predictions.labels, np.float64)
    if values.shape != labels.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape}, labels {labels.shape}: must be one of each for every example")
    return values, labels
