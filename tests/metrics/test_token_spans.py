"""Entities in BIO tags, and their F1."""

import pytest

from lora_jax.metrics import METRICS, Predictions
from lora_jax.metrics.tokens import span_f1, spans


def tagged(true, predicted):
    return Predictions(tags=[text.split() for text in true], predicted_tags=[text.split() for text in predicted])


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O B-PER I-PER O", [("PER", 1, 3)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # an I without a B begins an entity
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_of_tags(tags, entities):
    assert spans(tags.split()) == entities


def test_f1_counts_entities_with_type_and_both_ends():
    true = ["B-PER I-PER O B-LOC", "B-ORG O B-LOC I-LOC"]
    # Right: PER; another type: LOC; right: ORG; too short: LOC. One is predicted where none is.
    predicted = ["B-PER I-PER O B-PER", "B-ORG B-ORG B-LOC O"]
    assert span_f1(tagged(true, predicted)) == pytest.approx(2 * 2 / (4 + 5))
    assert METRICS["span_f1"].compute(tagged(true, true)) == 1


def test_entities_end_with_their_text():
    assert span_f1(tagged(["B-PER", "I-PER"], ["B-PER", "B-PER"])) == 1
    assert span_f1(tagged(["B-PER O", "O"], ["O", "B-PER O"][::-1])) == 1


def test_f1_without_a_right_entity_is_0():
    assert span_f1(tagged(["O O"], ["O O"])) == 0
    assert span_f1(tagged(["B-PER O"], ["O B-PER"])) == 0


def test_tags_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match="one of each for every token"):
        span_f1(tagged(["O O", "O"], ["O", "O O"]))
    with pytest.raises(ValueError, match="one of each for every token"):
        span_f1(tagged(["O"], ["O", "O"]))
    for tag in ("PER", "E-PER", "B-", "B"):
        with pytest.raises(ValueError, match=f"tag '{tag}': not O, B-type or I-type"):
            span_f1(tagged(["O"], [tag]))
