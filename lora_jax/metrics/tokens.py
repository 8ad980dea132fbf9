"""Metrics of the tags of tokens."""

from collections.abc import Sequence

from lora_jax.metrics.metric import Predictions


def span_f1(predictions: Predictions) -> float:
    """Returns the F1 score of entities, 2·TP / (entities predicted + entities true) over all texts.

    A predicted entity is right if its type and both its ends are. This is the F1 of CoNLL's script conlleval, and
    seqeval's default (micro average, not strict) for BIO tags. It is 0 where there is no entity at all. Raises
    ValueError for a tag that is not BIO, or a text that has more tags than predictions, or fewer.
    """
    tags, predicted_tags = predictions.tags or (), predictions.predicted_tags or ()
    if [len(text) for text in tags] != [len(text) for text in predicted_tags]:
        raise ValueError("tags and predicted tags: must be one of each for every token")
    true, predicted = (
        {(i, *span) for i, text in enumerate(field) for span in spans(text)} for field in (tags, predicted_tags)
    )
    total = len(true) + len(predicted)
    return 2 * len(true & predicted) / total if total else 0.0


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns (type, start, end) of each entity of a text, `end` excluded.

    An entity begins at a B, and at an I that follows an O or a tag of another type.
    """
    found: list[tuple[str, int, int]] = []
    start, kind = 0, ""  # of the entity that goes on; none if `kind` is empty
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, new = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not new):
            raise ValueError(f"tag {tag!r}: not O, B-type or I-type")
        if prefix == "I" and new == kind:
            continue
        if kind:
            found.append((kind, start, i))
        start, kind = i, new
    return found
