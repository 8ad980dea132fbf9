"""Answers in generated texts: a rule extracts the answer, and a metric compares it with that of the reference.

Each metric returns 1 for each text whose answer is that of one of its references, else 0. A text without an answer is
wrong. A reference without an answer is refused by ValueError: the metric does not suit the data.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.metric import Predictions

_Answer = TypeVar("_Answer", str, float)
_OPTION_SETS = (
    ("true", "false"),
    ("solution1", "solution2"),
    ("answer1", "answer2", "answer3", "answer4", "answer5"),
    ("ending1", "ending2", "ending3", "ending4"),
    ("option1", "option2"),
)
_OPTIONS = tuple(itertools.chain(*_OPTION_SETS))


def exact_match(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Compares whole texts, by `normalize`."""
    return right_texts(predictions, lambda text, reference: normalize(text) == normalize(reference))


def gsm8k_match(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Compares GSM8K's answers as strings, by `extract_gsm8k`: 5 and 5.0 differ."""
    return right_texts(
        predictions, lambda text, reference: extract_gsm8k(text) == _required(extract_gsm8k(reference), reference)
    )


def number_match(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Compares last numbers, by `extract_number`. They may differ by 0.001.

    The rule is that of LLM-Adapters (Hu et al., EMNLP 2023; ``evaluate.py`` of AGI-Edgerunners/LLM-Adapters, commit
    8166572) for SVAMP, AddSub, MultiArith and SingleEq.
    """

    def right(text: str, reference: str) -> bool:
        number, expected = extract_number(text), _required(extract_number(reference), reference)
        return number is not None and abs(expected - number) <= 1e-3

    return right_texts(predictions, right)


def letter_match(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Compares the letters of choices, by `extract_letter`. References should be a letter alone."""
    return right_texts(
        predictions, lambda text, reference: extract_letter(text) == _required(extract_letter(reference), reference)
    )


def option_match(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Compares the names of choices, by `extract_option`. The reference says of which set: solution1 and solution2, ...

    The rule is ``extract_answer`` in LLM-Adapters' ``commonsense_evaluate.py``, which takes the set from the name of
    the data set: BoolQ, PIQA, SIQA, ARC, OpenBookQA, HellaSwag or WinoGrande.
    """

    def right(text: str, reference: str) -> bool:
        expected = _required(extract_option(reference), reference)
        options = next(options for options in _OPTION_SETS if expected in options)
        return extract_option(text, options) == expected

    return right_texts(predictions, right)


def normalize(text: str) -> str:
    """Returns the text in lower case, with one space for any white space within and none around. Keeps punctuation."""
    return " ".join(text.lower().split())


def extract_gsm8k(text: str) -> str | None:
    """Returns the first number after ``#### ``, without commas; None if there is none.

    The rule is the official one: ``extract_answer`` in ``grade_school_math/dataset.py`` of openai/grade-school-math
    (Cobbe et al., arXiv 2110.14168).
    """
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return found[1].replace(",", "") if found else None


def extract_number(text: str) -> float | None:
    """Returns the last number, commas left out; None if there is none.

    The rule is ``extract_answer_number`` in LLM-Adapters' ``evaluate.py``. It reads 3-1 as 3 and -1.
    """
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None


def extract_letter(text: str) -> str | None:
    """Returns the first capital letter from A to E; None if there is none.

    The rule is ``extract_answer_letter`` in LLM-Adapters' ``evaluate.py``, for AQuA. It takes a letter within a word
    too: A from "Answer: B".
    """
    found = re.search("[A-E]", text)
    return found[0] if found else None


def extract_option(text: str, options: Sequence[str] = _OPTIONS) -> str | None:
    """Returns the one of `options` that occurs first in the text, in lower case only; None if there is none."""
    found = re.search("|".join(options), text)
    return found[0] if found else None


def right_texts(predictions: Predictions, right: Callable[[str, str], bool]) -> Float[np.ndarray, " examples"]:
    """Returns 1 for each text for which ``right(text, reference)`` holds of one of its references, else 0."""
    texts, references = predictions.texts or (), predictions.references or ()
    return np.array(
        [any(right(text, reference) for reference in of_text) for text, of_text in zip(texts, references, strict=True)],
        np.float64,
    )


def _required(answer: _Answer | None, reference: str) -> _Answer:
    if answer is None:
        raise ValueError(f"the reference {reference!r} has no answer that this metric can read")
    return answer
