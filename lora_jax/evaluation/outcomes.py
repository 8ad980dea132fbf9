"""From predictions to the outcomes that a run keeps of every test example."""

from collections.abc import Iterable

import numpy as np

from lora_jax.metrics import METRICS, Predictions
from lora_jax.metrics.classification import logits_and_labels, predicted_classes
from lora_jax.records.outcomes import Outcomes
from lora_jax.statistics import CORPUS_METRICS


def outcomes_of(predictions: Predictions, metrics: Iterable[str], fingerprint: str) -> Outcomes:
    """Returns what runs are compared by later.

    Metrics that are means over examples have their values kept. Those of CORPUS_METRICS are computed again from labels
    and predictions. All others, such as BLEU, have nothing kept.

    Args:
      predictions: of all test examples, in order.
      metrics: names. Those that need fields that `predictions` lacks are left out.
      fingerprint: SHA-256, in hex, of the test examples' texts and labels, in order.
    """
    scored = [METRICS[name] for name in metrics if METRICS[name].needs <= predictions.fields]
    per_example = {
        metric.name: _compact(metric.per_example(predictions)) for metric in scored if metric.per_example is not None
    }
    labels = predicted = classes = None
    if any(metric.name in CORPUS_METRICS for metric in scored):
        if predictions.logits is not None:
            logits, labels = logits_and_labels(predictions)
            labels, predicted = labels.astype(np.int32), predicted_classes(logits).astype(np.int32)
            classes = logits.shape[-1]
        else:
            labels, predicted = np.asarray(predictions.labels, np.float32), np.asarray(predictions.values, np.float32)
    examples = len(getattr(predictions, min(predictions.fields)))  # each field has one entry for each example
    return Outcomes(fingerprint, examples, per_example, labels, predicted, classes)


def _compact(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == bool else values.astype(np.float32)
