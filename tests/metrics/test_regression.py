"""Correlations of numbers against their definitions."""

import math

import numpy as np
import pytest

from lora_jax.metrics import METRICS, Predictions, lower_is_better
from lora_jax.metrics.regression import pearson, spearman, squared_errors


def numbers(values, labels):
    return Predictions(values=np.asarray(values), labels=np.asarray(labels))


def test_pearson_is_that_of_its_definition():
    # Centred: (-1, 0, 1) and (-2, -1, 3): 5 / sqrt(2 · 14).
    assert pearson(numbers([1, 2, 3], [1, 2, 6])) == pytest.approx(5 / math.sqrt(28))
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(2, 100))
    assert pearson(numbers(values, labels)) == pytest.approx(np.corrcoef(values, labels)[0, 1])


def test_spearman_gives_equal_numbers_their_average_rank():
    # Ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): covariance 4.5, variances 4.5 and 5.
    assert spearman(numbers([0, 7, 7, 100], [1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    values = np.random.default_rng(0).normal(size=50)
    assert spearman(numbers(values, np.exp(values))) == pytest.approx(1)
    assert spearman(numbers(values, -(values**3))) == pytest.approx(-1)


def test_correlations_are_in_float64():
    values = np.array([1e4, 1e4 + 1e-2, 1e4 + 2e-2], np.float32)
    expected = np.corrcoef(values.astype(np.float64), [1.0, 2.0, 4.0])[0, 1]
    assert pearson(numbers(values, [1, 2, 4])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_correlation_of_a_constant_is_0_and_of_nan_is_nan(metric):
    assert metric(numbers([0.1, 0.1, 0.1], [1, 2, 3])) == 0.0
    assert metric(numbers([1, 2, 3], [0.1, 0.1, 0.1])) == 0.0
    assert metric(numbers([1], [2])) == 0.0
    assert math.isnan(metric(numbers([1, math.nan, 3], [1, 2, 3])))
    assert math.isnan(metric(numbers([math.nan] * 3, [1, 1, 1])))


@pytest.mark.parametrize("metric", [pearson, spearman, squared_errors])
def test_numbers_without_a_label_are_refused(metric):
    with pytest.raises(ValueError, match=r"values \(2,\), labels \(1,\)"):
        metric(numbers([1.0, 2.0], [1.0]))
    with pytest.raises(ValueError, match="one of each for every example"):
        metric(numbers([], []))


def test_bits_per_byte_are_over_all_bytes():
    """Two texts: 8 bits in 2 bytes and 1 bit in 4."""
    predictions = Predictions(losses=np.log(2) * np.array([8, 1]), byte_counts=np.array([2, 4]))
    assert METRICS["bits_per_byte"].compute(predictions) == pytest.approx(9 / 6)
    assert lower_is_better("bits_per_byte")
    with pytest.raises(ValueError, match="no byte is labelled"):
        METRICS["bits_per_byte"].compute(Predictions(losses=np.zeros(2), byte_counts=np.zeros(2, int)))


def test_values_per_example_have_the_metric_as_their_mean():
    logits = np.array([[3.0, 1, 2], [3.0, 1, 2], [0.0, 1, 2], [np.nan, 0, 1]])
    texts = ["the answer is 4 #### 4", "A true answer1"]
    found = {
        "accuracy": (Predictions(labels=np.array([0, 1, 2, 2]), logits=logits), [1, 0, 1, 0]),
        "mean_squared_error": (numbers([1, 2], [3, 2]), [4, 0]),
        "exact_match": (Predictions(texts=texts, references=[["no", "The answer is 4 ####  4"], ["true"]]), [1, 0]),
    }
    for name, (predictions, expected) in found.items():
        per_example = METRICS[name].per_example
        assert per_example is not None and per_example(predictions).tolist() == expected
        assert METRICS[name].compute(predictions) == np.mean(expected)
    assert {name for name, metric in METRICS.items() if metric.per_example is None} >= {"loss", "bleu", "matthews"}
