"""What a run keeps of its predictions."""

import numpy as np
import pytest

from lora_jax.evaluation.outcomes import outcomes_of
from lora_jax.metrics import METRICS, Predictions
from lora_jax.records.outcomes import read_outcomes, write_outcomes

FINGERPRINT = "0123456789abcdef" * 4
CLASSES = Predictions(
    labels=np.array([0, 1, 2, 1]),
    logits=np.array([[2.0, 1, 0], [0, 1, 2], [0, 1, 2], [np.nan, 9, 0]]),
    losses=np.ones(4),
    tokens=np.ones(4, int),
)
VALUES = Predictions(labels=np.array([0.0, 1, 2]), values=np.array([0.5, 1, 4]))


def test_means_keep_their_values_and_other_metrics_of_classes_what_was_predicted():
    kept = outcomes_of(CLASSES, ["accuracy", "matthews", "loss", "bleu"], FINGERPRINT)
    assert (kept.fingerprint, kept.examples, kept.classes) == (FINGERPRINT, 4, 3)
    assert kept.per_example.keys() == {"accuracy"}
    assert kept.per_example["accuracy"].tolist() == [True, False, True, False]
    assert kept.labels.tolist() == [0, 1, 2, 1] and kept.predicted.tolist() == [0, 2, 2, 3]


def test_means_alone_keep_nothing_else():
    kept = outcomes_of(CLASSES, ["accuracy"], FINGERPRINT)
    assert kept.labels is None and kept.classes is None


def test_numbers_keep_their_errors():
    kept = outcomes_of(VALUES, ["mean_squared_error"], FINGERPRINT)
    assert kept.per_example["mean_squared_error"].tolist() == [0.25, 0, 4] and kept.labels is None


def test_texts_keep_nothing(tmp_path):
    kept = outcomes_of(Predictions(texts=["a", "b"], references=[["a"], ["b"]]), ["bleu", "loss"], FINGERPRINT)
    assert kept.examples == 2 and not kept.per_example and kept.labels is None
    write_outcomes(tmp_path, kept)
    assert read_outcomes(tmp_path).examples == 2


@pytest.mark.parametrize("predictions", [CLASSES, VALUES], ids=["classes", "values"])
def test_a_metric_with_values_per_example_is_their_mean(predictions):
    metrics = [m for m in METRICS.values() if m.per_example and m.needs <= predictions.fields]
    assert metrics
    for metric in metrics:
        assert metric.per_example(predictions).mean() == pytest.approx(metric.compute(predictions))
