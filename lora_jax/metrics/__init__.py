"""Metrics of predictions. Needs no JAX.

To add a metric: a function in the file of its kind, and a row in METRICS. A task lists the metrics that it records
(``data/tasks/``); ``task.metrics=[...]`` and ``task.select=...`` choose others for one sweep.
"""

from collections.abc import Iterable

from lora_jax.metrics import classification, language, regression
from lora_jax.metrics.metric import Metric, Predictions, Scoring, combine

__all__ = ["METRICS", "Metric", "Predictions", "Scoring", "better", "combine", "lower_is_better", "score"]

_ROWS = (
    Metric(
        "accuracy",
        "accuracy",
        True,
        frozenset({"labels", "logits"}),
        classification.accuracy,
        classification.right_examples,
    ),
    Metric("loss", "loss", False, frozenset({"losses", "tokens"}), language.loss),
    Metric("perplexity", "perplexity", False, frozenset({"losses", "tokens"}), language.perplexity),
    Metric("token_accuracy", "token accuracy", True, frozenset({"correct", "tokens"}), language.token_accuracy),
    Metric("f1", "F1", True, frozenset({"labels", "logits"}), classification.f1),
    Metric("matthews", "Matthews correlation", True, frozenset({"labels", "logits"}), classification.matthews),
    Metric(
        "mean_squared_error",
        "mean squared error",
        False,
        frozenset({"labels", "values"}),
        regression.mean_squared_error,
        regression.squared_errors,
    ),
    Metric("bleu", "bleu", True, frozenset({"texts", "references"}), language.bleu),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}


def score(predictions: Predictions, names: Iterable[str]) -> dict[str, float]:
    """Computes the metrics in `names`, in order, except those that need fields that `predictions` lacks."""
    available = predictions.fields
    return {name: METRICS[name].compute(predictions) for name in names if METRICS[name].needs <= available}


def lower_is_better(name: str) -> bool:
    """Returns whether a smaller value of this metric is better. False for a name that is not in METRICS.

    The records that a report reads may hold metrics of another version.
    """
    return name in METRICS and not METRICS[name].higher_is_better


def better(name: str, new: float, old: float) -> bool:
    """Returns whether `new` beats `old` as a value of the metric `name`. A NaN beats nothing."""
    return new < old if lower_is_better(name) else new > old
