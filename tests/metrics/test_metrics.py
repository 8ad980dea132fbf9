"""Metrics against numbers worked out by hand or in another way."""

import math

import numpy as np
import pytest

from lora_jax.metrics import METRICS, Metric, Predictions, better, combine, lower_is_better, score
from lora_jax.metrics.classification import accuracy, correct, cross_entropy, f1, matthews
from lora_jax.metrics.language import loss, perplexity, token_accuracy
from lora_jax.metrics.mteval import bleu, nist
from lora_jax.metrics.regression import mean_squared_error

LABELS = np.array([0, 1, 2])


def classified(labels, predicted, classes):
    """Predictions of the classes `predicted`."""
    return Predictions(labels=np.asarray(labels), logits=np.eye(classes)[np.asarray(predicted)])


def generated(texts, references):
    return Predictions(texts=texts, references=references)


# ---- classes


def test_accuracy_is_the_share_of_largest_logits():
    logits = np.array([[3.0, 1, 2], [3.0, 1, 2], [0.0, 1, 2]])
    assert accuracy(Predictions(labels=LABELS, logits=logits)) == 2 / 3


def test_f1_of_two_classes_is_that_of_class_1():
    # 2 of 4 predictions of class 1 are right, and 2 of its 3 labels are found: 2·2 / (4 + 3).
    assert f1(classified([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0], 2)) == pytest.approx(4 / 7)
    assert f1(classified([0, 0, 1], [0, 0, 0], 2)) == 0.0  # class 1 is never predicted


def test_f1_of_more_classes_is_the_mean_over_those_that_occur():
    predictions = classified([0, 0, 1, 2], [0, 1, 1, 1], 5)
    assert f1(predictions) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)  # classes 3 and 4 do not occur
    assert score(predictions, ["f1"]) == {"f1": f1(predictions)}
    broken = Predictions(labels=np.array([0, 1]), logits=np.array([[np.nan, 1.0], [0.0, 1.0]]))
    assert f1(broken) == 1.0


def test_cross_entropy_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(7, size=50)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(cross_entropy(logits, labels), -np.log(chances[np.arange(50), labels]), rtol=1e-12)
    np.testing.assert_allclose(cross_entropy(np.zeros((3, 77)), LABELS), math.log(77))


def test_huge_logits_give_a_finite_loss():
    logits = np.array([[3e38, 0, -3e38]] * 3)
    np.testing.assert_allclose(cross_entropy(logits, LABELS), [0, 3e38, 6e38], rtol=1e-6)
    assert cross_entropy(np.array([[0.0, -np.inf]]), np.array([0])) == 0.0


def test_a_row_with_nan_has_a_nan_loss_and_is_wrong():
    logits = np.array([[np.nan, 0, 0], [0.0, 5, 0], [0.0, 0, 5]])
    assert np.isnan(cross_entropy(logits, LABELS)).tolist() == [True, False, False]
    assert correct(logits, LABELS).tolist() == [False, True, True]
    assert accuracy(Predictions(labels=LABELS, logits=logits)) == 2 / 3


@pytest.mark.parametrize("metric", [accuracy, matthews])
def test_classes_that_cannot_be_scored_are_refused(metric):
    with pytest.raises(ValueError, match="shapes disagree"):
        metric(Predictions(logits=np.zeros((3, 2)), labels=np.zeros(2, int)))
    with pytest.raises(ValueError, match="no example to score"):
        metric(Predictions(logits=np.zeros((0, 2)), labels=np.zeros(0, int)))
    with pytest.raises(ValueError, match="labels -1 to 2, but 2 logits"):
        metric(Predictions(logits=np.zeros((3, 2)), labels=np.array([-1, 0, 2])))


def test_matthews_of_two_classes_is_that_of_the_confusion_matrix():
    """6 true positives, 3 true negatives, 1 false positive, 2 false negatives."""
    labels = [1] * 6 + [0] * 3 + [0] + [1] * 2
    predicted = [1] * 6 + [0] * 3 + [1] + [0] * 2
    assert matthews(classified(labels, predicted, 2)) == pytest.approx((6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5))
    assert matthews(classified(labels, labels, 2)) == pytest.approx(1)
    assert matthews(classified(labels, [1 - label for label in labels], 2)) == pytest.approx(-1)


def test_matthews_of_many_classes_is_the_correlation_of_one_hot_matrices():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=200)
    predicted = np.where(rng.random(200) < 0.4, labels, rng.integers(5, size=200))
    x, y = (np.eye(5)[classes] - np.eye(5)[classes].mean(0) for classes in (labels, predicted))
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert matthews(classified(labels, predicted, 5)) == pytest.approx(expected)


def test_matthews_of_a_constant_is_0():
    assert matthews(classified([0, 1, 1], [1, 1, 1], 2)) == 0.0
    assert matthews(classified([1, 1, 1], [0, 1, 1], 2)) == 0.0


def test_matthews_counts_nan_as_a_wrong_class():
    logits = np.array([[np.nan, 0], [0.0, 1], [0, 1], [1, 0]])
    value = matthews(Predictions(labels=np.array([0, 1, 1, 0]), logits=logits))
    assert value == pytest.approx((3 * 4 - (2 * 1 + 2 * 2)) / math.sqrt((16 - 8) * (16 - 6)))


# ---- tokens and texts


def test_losses_are_averaged_over_tokens_and_not_over_texts():
    """Two texts, of one token and of three."""
    found = Predictions(losses=np.array([4.0, 2.0]), tokens=np.array([1, 3]), correct=np.array([0, 2]))
    assert (loss(found), perplexity(found), token_accuracy(found)) == (1.5, pytest.approx(math.exp(1.5)), 0.5)
    assert perplexity(Predictions(losses=np.array([1e6]), tokens=np.array([1]))) == math.inf


@pytest.mark.parametrize("metric", [loss, perplexity, token_accuracy])
def test_texts_without_a_labelled_token_are_refused(metric):
    with pytest.raises(ValueError, match="no token is labelled"):
        metric(Predictions(losses=np.zeros(2), tokens=np.zeros(2, int), correct=np.zeros(2, int)))


def test_bleu_is_that_of_a_calculation_by_hand():
    """4-gram precisions 5/6, 4/5, 3/4, 2/3 against the closest of two references; lengths 6 against 6."""
    text = "the cat sat on the rug"
    value = bleu(generated([text], [["the cat sat on the mat", "a cat"]]))
    assert value == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert bleu(generated([text, "a dog sat"], [["nothing", text], ["a dog sat"]])) == pytest.approx(100)
    # Shorter than its reference: exp(1 - 6/5).
    value = bleu(generated(["the cat sat on the"], [["the cat sat on the mat"]]))
    assert value == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_bleu_is_neither_cased_nor_smoothed():
    upper, lower = "The Cat, Sat On 1,000.50 Mats", "the cat , sat on 1,000.50 mats"
    assert bleu(generated([upper], [[lower]])) == pytest.approx(100)
    # No 4-gram matches. sacrebleu's smoothing makes this 35.5.
    assert bleu(generated(["the cat sat down the mat"], [["the cat sat on the mat"]])) < 0.02
    with pytest.raises(ValueError, match="no text to score"):
        bleu(generated([], []))


def test_nist_weighs_ngrams_by_their_information():
    """Two references of 3 tokens: "a" is 2 of the 6, b, c, d, e 1 of 6 each; "a b" is half of what "a" starts."""
    references = [["a b c"], ["a d e"]]
    text = generated(["a b x", "a y z"], references)
    unigrams = (2 * math.log2(6 / 2) + math.log2(6 / 1)) / 6
    assert nist(text) == pytest.approx(unigrams + math.log2(2 / 1) / 4)
    # Two thirds of the references' length halve the score.
    short = (2 * math.log2(6 / 2) + math.log2(6 / 1)) / 4 + math.log2(2 / 1) / 2
    assert nist(generated(["a b", "a y"], references)) == pytest.approx(short / 2)


# ---- numbers


def test_mean_squared_error_is_in_float64():
    values, labels = np.array([1e4, 2.5], np.float32), np.array([1e4 - 1, 3.0], np.float32)
    assert mean_squared_error(Predictions(values=values, labels=labels)) == (1 + 0.25) / 2
    with pytest.raises(ValueError, match=r"values \(2,\), labels \(1,\)"):
        mean_squared_error(Predictions(values=values, labels=labels[:1]))


# ---- the registry


def test_score_computes_what_there_is_in_the_order_of_the_names():
    found = classified([0, 1], [0, 0], 2)
    assert list(score(found, ["bleu", "matthews", "loss", "accuracy"]).items()) == [
        ("matthews", 0.0),
        ("accuracy", 0.5),
    ]


def test_every_metric_needs_fields_of_predictions():
    assert all(name == metric.name for name, metric in METRICS.items())
    assert all(metric.needs <= set(Predictions.__dataclass_fields__) for metric in METRICS.values())


def test_what_a_machine_cannot_compute_is_left_out_with_one_warning(monkeypatch, caplog):
    lacking = [
        Metric(name, name, True, frozenset({"texts"}), lambda _: 1.0, unavailable=lambda: "no such program")
        for name in ("x", "y")
    ]
    for metric in lacking:
        monkeypatch.setitem(METRICS, metric.name, metric)
    found = generated(["a"], [["b"]])
    for _ in range(2):
        assert list(score(found, ["x", "nist", "y"])) == ["nist"]
    assert [record.getMessage() for record in caplog.records] == ["not computed: x, y (no such program)"]


def test_predictions_of_several_evaluators_are_combined():
    joined = combine([Predictions(labels=LABELS), generated(["a"], [["b"]])])
    assert joined.fields == {"labels", "texts", "references"}
    with pytest.raises(ValueError, match="two evaluators fill labels"):
        combine([Predictions(labels=LABELS), Predictions(labels=LABELS)])


def test_lower_losses_and_higher_scores_are_better():
    assert better("loss", 1.0, 2.0) and better("perplexity", 1.0, 2.0) and better("accuracy", 2.0, 1.0)
    assert better("mean_squared_error", 1.0, 2.0) and better("matthews", 1.0, -1.0)
    assert not any(better(name, 1.0, 1.0) for name in METRICS)
    assert not better("loss", math.nan, 1.0) and not better("bleu", math.nan, 1.0)
    assert not lower_is_better("a metric of another version")
