"""Metrics against numbers worked out by hand or in another way."""

import math

import numpy as np
import pytest

from lora_jax.metrics import METRICS
from lora_jax.metrics.classification import accuracy, cross_entropy

LABELS = np.array([0, 1, 2])
ONES = np.ones(3)


def test_accuracy_is_a_weighted_share():
    logits = np.array([[3.0, 1, 2], [3.0, 1, 2], [0.0, 1, 2]])
    assert accuracy(logits, LABELS, ONES) == pytest.approx(2 / 3)
    assert accuracy(logits, LABELS, np.array([1.0, 2.0, 1.0])) == 0.5


def test_cross_entropy_against_the_definition():
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=(50, 7)), rng.integers(7, size=50), rng.uniform(size=50)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -(weights * np.log(chances[np.arange(50), labels])).sum() / weights.sum()
    assert cross_entropy(logits, labels, weights) == pytest.approx(expected, rel=1e-12)
    assert cross_entropy(np.zeros((3, 77)), LABELS, ONES) == pytest.approx(math.log(77))


def test_huge_logits_give_a_finite_loss():
    logits = np.array([[3e38, 0, -3e38]] * 3, np.float32)
    assert cross_entropy(logits, LABELS, ONES) == pytest.approx((0 + 3e38 + 6e38) / 3, rel=1e-6)
    assert cross_entropy(np.array([[0.0, -np.inf]]), np.array([0]), np.ones(1)) == 0.0


def test_nan_is_a_nan_loss_and_a_wrong_answer():
    logits = np.array([[np.nan, 0, 0], [0.0, 5, 0], [0.0, 0, 5]])
    assert math.isnan(cross_entropy(logits, LABELS, ONES))
    assert accuracy(logits, LABELS, ONES) == pytest.approx(2 / 3)
    assert accuracy(np.full((3, 3), np.nan), LABELS, ONES) == 0.0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_rows_without_weight_do_not_count(metric):
    logits = np.array([[1.0, 2, 3], [np.nan, np.nan, np.nan]])
    assert metric(logits, np.array([1, 99]), np.array([1.0, 0.0])) == metric(logits[:1], np.array([1]), np.ones(1))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_what_cannot_be_scored_is_refused(metric):
    with pytest.raises(ValueError, match="shapes disagree"):
        metric(np.zeros((3, 2)), np.zeros(2, int), np.ones(2))
    with pytest.raises(ValueError, match="no example has weight"):
        metric(np.zeros((3, 2)), np.zeros(3, int), np.zeros(3))
    with pytest.raises(ValueError, match="labels -1 to 2, but 2 logits"):
        metric(np.zeros((3, 2)), np.array([-1, 0, 2]), ONES)
