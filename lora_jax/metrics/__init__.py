"""Metrics of predictions. Needs no JAX.

To add a metric: a function in the file of its kind, and a row in METRICS. A task lists the metrics that it records
(``data/tasks/``); ``task.metrics=[...]`` and ``task.select=...`` choose others for one sweep.
"""

import logging
from collections.abc import Iterable

from lora_jax.metrics import caption, classification, java, language, mteval, regression
from lora_jax.metrics.metric import Metric, Predictions, Scoring, combine

__all__ = ["METRICS", "Metric", "Predictions", "Scoring", "better", "combine", "lower_is_better", "score"]

_ROWS = (
    Metric("accuracy", "accuracy", True, frozenset({"labels", "logits"}), classification.accuracy),
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
    ),
    Metric("bleu", "bleu", True, frozenset({"texts", "references"}), mteval.bleu),
    Metric("nist", "NIST", True, frozenset({"texts", "references"}), mteval.nist),
    Metric("meteor", "METEOR", True, frozenset({"texts", "references"}), caption.meteor, java.unavailable),
    Metric("rouge_l", "ROUGE-L", True, frozenset({"texts", "references"}), caption.rouge_l, java.unavailable),
    Metric("cider", "CIDEr", True, frozenset({"texts", "references"}), caption.cider, java.unavailable),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}
_warned: set[str] = set()  # the reasons that were given


def score(predictions: Predictions, names: Iterable[str]) -> dict[str, float]:
    """Computes the metrics in `names`, in order, except those that need fields that `predictions` lacks.

    What this machine cannot compute is left out too, with a warning the first time.
    """
    metrics = [METRICS[name] for name in names if METRICS[name].needs <= predictions.fields]
    reasons = {metric.name: metric.available() for metric in metrics}
    for reason in {reason for reason in reasons.values() if reason} - _warned:
        _warned.add(reason)
        left_out = ", ".join(name for name in reasons if reasons[name] == reason)
        logging.getLogger("lora_jax").warning("not computed: %s (%s)", left_out, reason)
    return {metric.name: metric.compute(predictions) for metric in metrics if not reasons[metric.name]}


def lower_is_better(name: str) -> bool:
    """Returns whether a smaller value of this metric is better. False for a name that is not in METRICS.

    The records that a report reads may hold metrics of another version.
    """
    return name in METRICS and not METRICS[name].higher_is_better


def better(name: str, new: float, old: float) -> bool:
    """Returns whether `new` beats `old` as a value of the metric `name`. A NaN beats nothing."""
    return new < old if lower_is_better(name) else new > old
