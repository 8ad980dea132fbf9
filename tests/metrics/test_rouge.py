"""ROUGE against values worked out by hand."""

import pytest

from lora_jax.metrics import METRICS, Predictions

ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge(texts, references):
    predictions = Predictions(texts=texts, references=references)
    return tuple(METRICS[name].compute(predictions) for name in ROUGE)


def test_rouge_is_that_of_a_calculation_by_hand():
    """5 words against 6, of which 4 are common, in one order. 2 of 4 and 5 pairs are common: the cat, on the."""
    values = rouge(["the cat lay on the"], [["the cat sat on the mat"]])
    assert values == pytest.approx((100 * 2 * 4 / 11, 100 * 2 * 2 / 9, 100 * 2 * 4 / 11))
    # The order counts in pairs and subsequences: b a against a b.
    assert rouge(["b a"], [["a b"]]) == pytest.approx((100, 0, 50))


def test_words_are_stems_in_lower_case_without_punctuation():
    assert rouge(["Amanda BAKED cookies!"], [["amanda bakes cookie"]]) == pytest.approx((100, 100, 100))
    assert rouge(["do"], [["does"]]) == (0, 0, 0)  # three characters or fewer are not stemmed


def test_the_best_reference_counts_and_texts_are_averaged():
    texts, references = ["a b", "c d"], [["x y", "a b", "a x"], ["c e"]]
    assert rouge(texts, references) == pytest.approx(((100 + 50) / 2, 50, (100 + 50) / 2))
    per_example = METRICS["rouge1"].per_example
    assert per_example(Predictions(texts=texts, references=references)).tolist() == pytest.approx([100, 50])


def test_sentences_on_lines_are_one_sequence():
    """rougeL and not rougeLsum: c d before a b shares two words in order, and not four."""
    assert rouge(["c d\na b"], [["a b\nc d"]])[2] == pytest.approx(50)


def test_an_empty_text_scores_0():
    assert rouge(["", "?!"], [["a b"], ["a b"]]) == (0, 0, 0)
