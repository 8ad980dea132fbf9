"""Packs short examples into rows: several sequences of one row, separated by their segment numbers.

A row is an example of the packed split, so a batch counts rows. Which examples share a row is fixed: it depends on
their lengths and order alone, not on the seed. Models that read `Batch.segments` attend within a segment and count
positions from its start, so an example's loss is what it is alone.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64

from lora_jax.data.tokens import Encoded


def pack(encoded: Encoded, length: int) -> Encoded:
    """Returns the examples in rows of at most `length` tokens. Segments are numbered from 1 in each row.

    The longest example comes first, and each goes into the fullest row that has room for it (best-fit decreasing;
    Johnson, 1974).

    Args:
      encoded: examples with a label for each token, none longer than `length`.
      length: the most tokens in a row.

    Raises:
      ValueError: an example is longer, or has one label.
    """
    lengths = encoded.lengths
    if not encoded.by_token or lengths.max(initial=0) > length:
        raise ValueError(f"expected labels by token, and examples of at most {length} tokens")
    rows = _rows(lengths, length)
    order = np.concatenate([np.asarray(row, np.int64) for row in rows])
    places = np.concatenate([np.arange(encoded.offsets[i], encoded.offsets[i + 1]) for i in order])
    numbers = np.concatenate([np.arange(1, len(row) + 1) for row in rows])
    return dataclasses.replace(
        encoded,
        tokens=encoded.tokens[places],
        labels=encoded.labels[places],
        offsets=np.cumsum([0, *(int(lengths[row].sum()) for row in rows)], dtype=np.int64),
        max_length=length,
        segments=np.repeat(numbers, lengths[order]).astype(np.int32),
    )


def _rows(lengths: Int64[np.ndarray, " examples"], length: int) -> list[list[int]]:
    """Returns the examples of each row."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows that have room for so many tokens
    for example in np.argsort(-lengths, kind="stable").tolist():
        needed = int(lengths[example])
        room = next((room for room in range(needed, length + 1) if by_room[room]), None)
        if room is None:
            row, room = len(rows), length
            rows.append([])
        else:
            row = by_room[room].pop()
        rows[row].append(example)
        by_room[room - needed].append(row)
    return rows
