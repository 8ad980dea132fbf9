"""The rules that read an answer in a text."""

import pytest

from lora_jax.metrics import METRICS, Predictions
from lora_jax.metrics.answers import extract_gsm8k, extract_letter, extract_number, extract_option, normalize


def share(name, texts, *references):
    """The metric of `texts`, each with all `references`."""
    return METRICS[name].compute(Predictions(texts=texts, references=[references] * len(texts)))


def test_exact_match_leaves_out_case_and_white_space_alone():
    assert normalize("  A\tcat,\n\n sat ") == "a cat, sat"
    assert share("exact_match", ["the CAT ", " the\ncat", "the cat.", "a cat", ""], "The  cat") == 2 / 5
    assert share("exact_match", ["b"], "a", "B") == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3+2=5\n#### 5", "5"),
        ("#### 1,234.50", "1234.50"),
        ("#### -7 and #### 8", "-7"),
        ("#### 12.", "12."),  # as the official rule has it
        ("####5", None),
        ("#### $5", None),
        ("the answer is 5", None),
    ],
)
def test_gsm8k_answers_follow_four_hashes(text, answer):
    assert extract_gsm8k(text) == answer


def test_gsm8k_answers_are_compared_as_strings():
    texts = ["so\n#### 1,000", "#### 1000.0", "1000", "#### 999"]
    assert share("gsm8k_match", texts, "it is <<10*100=1000>>1,000\n#### 1000") == 1 / 4


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 9 = 7.", 7.0),
        ("It costs $1,234.5 in all", 1234.5),
        ("from 5 to -3", -3.0),
        ("3-1", -1.0),  # as in LLM-Adapters
        ("seven", None),
    ],
)
def test_numbers_are_the_last_of_a_text(text, answer):
    assert extract_number(text) == answer


def test_numbers_may_differ_by_a_thousandth():
    texts = ["8 apples", "8.0009", "7.9991", "8.002", "no idea", "8 of 9"]
    assert share("number_match", texts, "8.0") == 3 / 6
    assert share("number_match", ["3", "9" * 400], "3") == 1 / 2


def test_letters_are_the_first_capital_from_a_to_e():
    assert extract_letter("the answer is (D).") == "D"
    assert extract_letter("Answer: B") == "A"  # as in LLM-Adapters
    assert extract_letter("it is f or F") is None
    assert share("letter_match", ["B", "(B) 12", "is C", "b"], "B") == 2 / 4


def test_options_are_those_of_the_references_set():
    assert extract_option("the correct answer is answer3, not answer1") == "answer3"
    assert extract_option("Solution1") is None
    texts = ["it is true that solution2 works", "solution1 or solution2", "the correct answer is true", ""]
    assert share("option_match", texts, "the correct answer is solution2") == 1 / 4
    assert share("option_match", texts, "true") == 2 / 4
    assert share("option_match", ["ending4", "option2", "answer5"], "ending4") == 1 / 3


@pytest.mark.parametrize("name", ["gsm8k_match", "number_match", "letter_match", "option_match"])
def test_references_without_an_answer_are_refused(name):
    with pytest.raises(ValueError, match="the reference 'nothing' has no answer"):
        share(name, ["#### 5 A true"], "nothing")


def test_every_text_has_references():
    with pytest.raises(ValueError, match="shorter"):
        METRICS["exact_match"].compute(Predictions(texts=["a", "b"], references=[["a"]]))
    with pytest.raises(ValueError, match="no example to score"):
        METRICS["exact_match"].compute(Predictions(texts=[], references=[]))
