"""Metrics of predictions. Needs no JAX.

To add a metric: a function in the file of its kind, and a row in METRICS. A task lists the metrics that it records
(``data/tasks/``); ``task.metrics=[...]`` and ``task.select=...`` choose others for one sweep.
"""

import functools
import logging
from collections.abc import Iterable

from lora_jax.metrics import (
    answers,
    caption,
    classification,
    java,
    language,
    mteval,
    regression,
    retrieval,
    rouge,
    sql,
    tokens,
)
from lora_jax.metrics.metric import Metric, Predictions, Scoring, combine

__all__ = ["METRICS", "Metric", "Predictions", "Scoring", "better", "combine", "lower_is_better", "score"]

_CLASSES = frozenset({"labels", "logits"})
_NUMBERS = frozenset({"labels", "values"})
_TEXTS = frozenset({"texts", "references"})
_RANKINGS = frozenset({"scores", "relevance"})
_ROWS = (
    Metric("accuracy", "accuracy", True, _CLASSES, classification.accuracy, classification.right_examples),
    Metric("loss", "loss", False, frozenset({"losses", "tokens"}), language.loss),
    Metric("perplexity", "perplexity", False, frozenset({"losses", "tokens"}), language.perplexity),
    Metric("bits_per_byte", "bits per byte", False, frozenset({"losses", "byte_counts"}), language.bits_per_byte),
    Metric("token_accuracy", "token accuracy", True, frozenset({"correct", "tokens"}), language.token_accuracy),
    Metric("f1", "F1", True, _CLASSES, classification.f1),
    Metric("matthews", "Matthews correlation", True, _CLASSES, classification.matthews),
    Metric(
        "mean_squared_error",
        "mean squared error",
        False,
        _NUMBERS,
        regression.mean_squared_error,
        regression.squared_errors,
    ),
    Metric("pearson", "Pearson correlation", True, _NUMBERS, regression.pearson),
    Metric("spearman", "Spearman correlation", True, _NUMBERS, regression.spearman),
    Metric("bleu", "bleu", True, _TEXTS, mteval.bleu),
    Metric("nist", "NIST", True, _TEXTS, mteval.nist),
    Metric("meteor", "METEOR", True, _TEXTS, caption.meteor, unavailable=java.unavailable),
    Metric("rouge_l", "ROUGE-L (E2E)", True, _TEXTS, caption.rouge_l, unavailable=java.unavailable),
    Metric("cider", "CIDEr", True, _TEXTS, caption.cider, unavailable=java.unavailable),
    Metric.mean_of(functools.partial(rouge.f_measures, "rouge1"), "rouge1", "ROUGE-1", True, _TEXTS),
    Metric.mean_of(functools.partial(rouge.f_measures, "rouge2"), "rouge2", "ROUGE-2", True, _TEXTS),
    Metric.mean_of(functools.partial(rouge.f_measures, "rougeL"), "rougeL", "ROUGE-L", True, _TEXTS),
    Metric.mean_of(answers.exact_match, "exact_match", "exact match", True, _TEXTS),
    Metric.mean_of(answers.gsm8k_match, "gsm8k_match", "GSM8K answer match", True, _TEXTS),
    Metric.mean_of(answers.number_match, "number_match", "number match", True, _TEXTS),
    Metric.mean_of(answers.letter_match, "letter_match", "letter match", True, _TEXTS),
    Metric.mean_of(answers.option_match, "option_match", "option match", True, _TEXTS),
    Metric.mean_of(sql.logical_form, "logical_form", "logical form accuracy", True, _TEXTS),
    Metric.mean_of(functools.partial(retrieval.recall, 1), "recall_at_1", "recall@1", True, _RANKINGS),
    Metric.mean_of(functools.partial(retrieval.recall, 10), "recall_at_10", "recall@10", True, _RANKINGS),
    Metric.mean_of(functools.partial(retrieval.ndcg, 10), "ndcg_at_10", "nDCG@10", True, _RANKINGS),
    Metric("span_f1", "span F1", True, frozenset({"tags", "predicted_tags"}), tokens.span_f1),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}
_warned: set[str] = set()  # the reasons that were given


def score(predictions: Predictions, names: Iterable[str]) -> dict[str, float]:
    """Computes the metrics in `names`, in order, except those that need fields that `predictions` lacks.

    What this machine cannot compute is left out too, with a warning the first time.
    """
    metrics = [METRICS[name] for name in names if METRICS[name].needs <= predictions.fields]
    reasons = {metric.name: metric.unavailable() for metric in metrics}
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
