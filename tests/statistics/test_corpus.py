"""Weighted metrics equal those of `lora_jax.metrics` on samples that repeat examples as often as their weights say."""

import numpy as np
import pytest
import scipy.stats

from lora_jax.metrics import Predictions
from lora_jax.metrics.classification import f1, matthews
from lora_jax.statistics import CORPUS_METRICS, Answers, corpus_metric, corpus_standard_error
from lora_jax.statistics.bootstrap import bootstrap_scores

DRAWS = np.random.default_rng(0)
WEIGHTS = DRAWS.multinomial(60, np.full(60, 1 / 60), 20).astype(float)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name, reference", [("f1", f1), ("matthews", matthews)])
def test_metrics_of_classes(name, reference, classes):
    labels, predicted = DRAWS.integers(0, classes, (2, 60))
    predicted = np.where(DRAWS.random(60) < 0.5, labels, predicted)
    predicted[:3] = classes  # no class
    logits = np.where((predicted == classes)[:, None], np.nan, np.eye(classes + 1)[predicted][:, :classes])
    scores = corpus_metric(name, classes)(Answers(labels, predicted, classes), WEIGHTS)
    for score, weights in zip(scores, WEIGHTS.astype(int), strict=True):
        sample = Predictions(labels=labels.repeat(weights), logits=logits.repeat(weights, 0))
        assert score == pytest.approx(reference(sample), abs=1e-12)


@pytest.mark.parametrize("name, reference", [("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)])
def test_metrics_of_values(name, reference):
    labels = DRAWS.integers(0, 6, 60).astype(np.float32)  # many are equal, as in STS-B
    predicted = (labels + DRAWS.normal(size=60)).round(1).astype(np.float32)
    scores = corpus_metric(name, None)(Answers(labels, predicted, None), WEIGHTS)
    for score, weights in zip(scores, WEIGHTS.astype(int), strict=True):
        assert score == pytest.approx(reference(labels.repeat(weights), predicted.repeat(weights))[0], abs=1e-6)


@pytest.mark.parametrize("name", sorted(CORPUS_METRICS))
def test_what_does_not_vary_scores_0(name):
    classes = 2 if corpus_metric(name, 2) else None
    zeros = np.zeros(60, np.int32 if classes else np.float32)
    assert (corpus_metric(name, classes)(Answers(zeros, zeros, classes), WEIGHTS) == 0).all()


def test_metrics_of_classes_are_not_those_of_values():
    assert corpus_metric("matthews", None) is None and corpus_metric("pearson", 2) is None
    assert corpus_metric("bleu", 2) is None


def test_the_bootstraps_standard_error_is_that_of_theory():
    """That of Pearson's r of normal values is about (1 - r²) / sqrt(n)."""
    n = 1500
    labels = DRAWS.normal(size=n).astype(np.float32)
    predicted = (labels + DRAWS.normal(size=n)).astype(np.float32)
    error = corpus_standard_error(corpus_metric("pearson", None), Answers(labels, predicted, None))
    assert error == pytest.approx((1 - np.corrcoef(labels, predicted)[0, 1] ** 2) / np.sqrt(n), rel=0.1)


def test_equal_runs_have_equal_resamples_and_the_order_of_runs_does_not_matter():
    labels, a, b = DRAWS.integers(0, 3, (3, 200))
    both = bootstrap_scores(corpus_metric("matthews", 3), labels, np.stack([a, b, a]), 3)
    swapped = bootstrap_scores(corpus_metric("matthews", 3), labels, np.stack([b, a, a]), 3)
    np.testing.assert_array_equal(both[:, 0], both[:, 2])
    np.testing.assert_allclose(both[:, [1, 0, 2]], swapped, atol=1e-12)
