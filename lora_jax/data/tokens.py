"""Texts to token ids, by the `tokenizers` library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32, Int64

from lora_jax.data.examples import Examples
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The label of a token that predicts nothing which counts.
IGNORED = -1
# Between what is given and what is to be written.
SEPARATOR = "\n"


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised examples, ragged: example i is `tokens[offsets[i] : offsets[i + 1]]`, 1 to `max_length` tokens long.

    An example has one label or, with `by_token`, one for each token, which lie as `tokens` does.
    """

    tokens: Int32[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " examples+1"]
    labels: Int32[np.ndarray, " examples"] | Int32[np.ndarray, " tokens"]
    max_length: int
    by_token: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """Each example's number of tokens."""
        return np.diff(self.offsets)

    def __getitem__(self, i: int) -> Int32[np.ndarray, " length"]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def padded(self, examples: Int[np.ndarray, "..."], length: int, pad_id: int) -> tuple[np.ndarray, ...]:
        """(tokens, mask, labels) of `examples`, cut or padded on the right to `length`.

        Tokens and mask are ``[..., length]``; labels are that too where there is one for each token, else ``[...]``.
        """
        places = self.offsets[examples][..., None] + np.arange(length)
        mask = places < self.offsets[examples + 1][..., None]
        tokens = np.where(mask, self.tokens.take(places, mode="clip"), np.int32(pad_id))
        if not self.by_token:
            return tokens, mask, self.labels[examples]
        return tokens, mask, np.where(mask, self.labels.take(places, mode="clip"), np.int32(IGNORED))


def tokenize(examples: Examples, tokenizer: "Tokenizer", max_length: int) -> Encoded:
    """Token ids of every example, with the tokenizer's special tokens, cut to `max_length` tokens, those included.

    `tokenizer` is left as it is; truncation and padding that it was saved with do not count. Raises UserError if
    `max_length` leaves no room for a text beside the special tokens, or a text comes to no token at all.
    """
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length <= special:
        raise UserError(f"max_length={max_length}: the tokenizer adds {special} tokens of its own; must be more")
    rows = _ids(tokenizer, examples.texts, max_length)
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise UserError(f"text {empty[0]} ({examples.texts[empty[0]]!r}) comes to no token")
    return Encoded(_flat(rows), _offsets(rows), np.asarray(examples.labels, np.int32), max_length)


def tokenize_pairs(examples: Examples, tokenizer: "Tokenizer", end: int, max_length: int) -> Encoded:
    """What a causal language model reads to learn to write: each text, SEPARATOR, what to write.

    A token's label is the next token where that is of what is to be written, `end` for its last, else IGNORED. Text
    and reference are tokenised apart, as they are when the text alone is given (`prompts`). What is longer than
    `max_length` is cut at its end. Raises UserError where a text leaves no room.
    """
    given = prompts(examples.texts, tokenizer)
    written = _ids(tokenizer, list(examples.labels), special=False)
    rows, labels = [], []
    for i, (text, reference) in enumerate(zip(given, written, strict=True)):
        if not 0 < len(text) <= max_length:
            raise UserError(
                f"task.buckets: text {i} ({examples.texts[i]!r}) comes to {len(text)} tokens, and the longest bucket "
                f"is {max_length}; must hold every text"
            )
        rows.append([*text, *reference][:max_length])
        labels.append([*[IGNORED] * (len(text) - 1), *reference, end][:max_length])
    return Encoded(_flat(rows), _offsets(rows), _flat(labels), max_length, by_token=True)


def prompts(texts: Sequence[str], tokenizer: "Tokenizer") -> list[list[int]]:
    """The tokens after which a model begins to write: the special ones that stand first, the text, SEPARATOR."""
    return _ids(tokenizer, [text + SEPARATOR for text in texts])


def _ids(tokenizer: "Tokenizer", texts: list[str], max_length: int | None = None, special: bool = True):
    own = tokenizer.from_str(tokenizer.to_str())
    own.no_padding()
    if max_length is None:
        own.no_truncation()
    else:
        own.enable_truncation(max_length)
    return [encoding.ids for encoding in own.encode_batch_fast(texts, add_special_tokens=special)]


def _offsets(rows: Sequence[Sequence[int]]) -> Int64[np.ndarray, " examples+1"]:
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)


def _flat(rows: Sequence[Sequence[int]]) -> Int32[np.ndarray, " tokens"]:
    return np.array([token for row in rows for token in row], np.int32)
