"""Metrics that are no means over examples, of many weighted samples at once.

A resample of a test set is a weight for each example: how often it was drawn. With all weights 1 each function equals
the function of the same name in ``lora_jax.metrics``; ``tests/statistics/test_corpus.py`` compares them.

To resample another metric: a function here, and a row under the metric's name at the end of this file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True, eq=False)
class Answers:
    """What one run answered.

    Attributes:
      labels: the true classes (int), or the true values (float).
      predicted: the predicted classes, or values. A class equal to `classes` is none.
      classes: the number of classes; None for values.
    """

    labels: Shaped[np.ndarray, " examples"]
    predicted: Shaped[np.ndarray, " examples"]
    classes: int | None


Weights = Float[np.ndarray, "samples examples"]
Scores = Float[np.ndarray, " samples"]
CorpusMetric = Callable[[Answers, Weights], Scores]


def matthews(answers: Answers, weights: Weights) -> Scores:
    """Returns Matthews' correlation, R_K for more than two classes (Gorodkin, 2004, equation 2). 0 where undefined."""
    true, predicted = _one_hot(answers, np.unique([answers.labels, answers.predicted]))
    n = weights.sum(1)
    true_counts, predicted_counts = weights @ true, weights @ predicted
    covariance = n * (weights @ (answers.labels == answers.predicted)) - (true_counts * predicted_counts).sum(1)
    variances = (n**2 - (true_counts**2).sum(1)) * (n**2 - (predicted_counts**2).sum(1))
    return _ratio(covariance, np.sqrt(variances))


def f1(answers: Answers, weights: Weights) -> Scores:
    """Returns F1 of class 1 where there are two classes, else its mean over the classes that occur in a sample."""
    occurring = np.unique([answers.labels, answers.predicted])
    binary = answers.classes == 2
    true, predicted = _one_hot(answers, np.array([1]) if binary else occurring[occurring != answers.classes])
    totals = weights @ (true + predicted)
    scores = _ratio(2 * (weights @ (true * predicted)), totals)
    return scores[:, 0] if binary else _ratio(scores.sum(1), (totals > 0).sum(1))


def pearson(answers: Answers, weights: Weights) -> Scores:
    """Returns Pearson's correlation of labels and predicted values. 0 where one of them does not vary."""
    return _correlation(_row(answers.labels), _row(answers.predicted), weights)


def spearman(answers: Answers, weights: Weights) -> Scores:
    """Returns Spearman's correlation: Pearson's, of ranks. Equal values share the mean of their ranks."""
    return _correlation(_ranks(answers.labels, weights), _ranks(answers.predicted, weights), weights)


_OF_CLASSES: Mapping[str, CorpusMetric] = {"matthews": matthews, "f1": f1}
_OF_VALUES: Mapping[str, CorpusMetric] = {"pearson": pearson, "spearman": spearman}
CORPUS_METRICS = frozenset({*_OF_CLASSES, *_OF_VALUES})


def corpus_metric(name: str, classes: int | None) -> CorpusMetric | None:
    """Returns the metric of this name if it is one of classes, or of values where `classes` is None; else None."""
    return (_OF_VALUES if classes is None else _OF_CLASSES).get(name)


def _one_hot(
    answers: Answers, classes: Int[np.ndarray, " classes"]
) -> tuple[Float[np.ndarray, "examples classes"], Float[np.ndarray, "examples classes"]]:
    true, predicted = ((side[:, None] == classes).astype(np.float64) for side in (answers.labels, answers.predicted))
    return true, predicted


def _row(values: Shaped[np.ndarray, " examples"]) -> Float[np.ndarray, "1 examples"]:
    return np.asarray(values, np.float64)[None]


def _ranks(values: Shaped[np.ndarray, " examples"], weights: Weights) -> Float[np.ndarray, "samples examples"]:
    """Returns the mean rank of each example in each sample, from 1; of no meaning where its weight is 0."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: np.ndarray = (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]
    return ranks


def _correlation(
    x: Float[np.ndarray, "#samples examples"], y: Float[np.ndarray, "#samples examples"], weights: Weights
) -> Scores:
    n = weights.sum(1, keepdims=True)
    dx = x - (weights * x).sum(1, keepdims=True) / n
    dy = y - (weights * y).sum(1, keepdims=True) / n
    weighted = weights * dx
    return _ratio((weighted * dy).sum(1), np.sqrt((weighted * dx).sum(1) * (weights * dy**2).sum(1)))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns their quotient, and 0 where the denominator is 0."""
    result: np.ndarray = np.divide(numerator, denominator, where=denominator > 0, out=np.zeros(numerator.shape))
    return result
