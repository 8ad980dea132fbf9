"""Metrics against numbers worked out by hand or in another way."""

import math

import numpy as np
import pytest

from lora_jax.metrics import better
from lora_jax.metrics.classification import accuracy, cross_entropy, scores
from lora_jax.metrics.language import bleu, token_scores

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


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
def test_rows_without_weight_do_not_count(metric):
    logits = np.array([[1.0, 2, 3], [np.nan, np.nan, np.nan]])
    assert metric(logits, np.array([1, 99]), np.array([1.0, 0.0])) == metric(logits[:1], np.array([1]), np.ones(1))


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
def test_what_cannot_be_scored_is_refused(metric):
    with pytest.raises(ValueError, match="shapes disagree"):
        metric(np.zeros((3, 2)), np.zeros(2, int), np.ones(2))
    with pytest.raises(ValueError, match="no example has weight"):
        metric(np.zeros((3, 2)), np.zeros(3, int), np.zeros(3))
    with pytest.raises(ValueError, match="labels -1 to 2, but 2 logits"):
        metric(np.zeros((3, 2)), np.array([-1, 0, 2]), ONES)


def test_scores_are_both_figures():
    logits = np.array([[3.0, 1, 2], [3.0, 1, 2], [0.0, 1, 2]])
    expected = {"accuracy": accuracy(logits, LABELS, ONES), "loss": cross_entropy(logits, LABELS, ONES)}
    assert scores(logits, LABELS) == expected


def test_token_scores_count_tokens_and_not_texts():
    # Two texts, of one token and of three.
    figures = token_scores(np.array([[4.0, 1, 0], [2.0, 3, 2]]))
    assert figures == {"loss": 1.5, "perplexity": pytest.approx(math.exp(1.5)), "token_accuracy": 0.5}
    assert token_scores(np.array([[1e6, 1, 0]]))["perplexity"] == math.inf
    with pytest.raises(ValueError, match="no token is labelled"):
        token_scores(np.zeros((2, 3)))


def test_bleu_by_hand():
    """4-gram precisions 5/6, 4/5, 3/4, 2/3 against the closest of two references; lengths 6 against 6."""
    text = "the cat sat on the rug"
    found = bleu([text], [["the cat sat on the mat", "a cat"]])
    assert found == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert bleu([text, "a dog"], [["nothing", text], ["a dog"]]) == pytest.approx(100)
    # Shorter than its reference: exp(1 - 6/5).
    assert bleu(["the cat sat on the"], [["the cat sat on the mat"]]) == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_which_way_is_up():
    assert better("loss", 1.0, 2.0) and better("perplexity", 1.0, 2.0) and better("accuracy", 2.0, 1.0)
    assert not any(better(name, 1.0, 1.0) for name in ("loss", "accuracy"))
    assert not better("loss", math.nan, 1.0) and not better("bleu", math.nan, 1.0)
