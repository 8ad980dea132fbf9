"""Texts to token ids, by the `tokenizers` library."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, Int64

from lora_jax.data.examples import Examples
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised examples, ragged: example i is `tokens[offsets[i] : offsets[i + 1]]`, 1 to `max_length` tokens long."""

    tokens: Int32[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " examples+1"]
    labels: Int32[np.ndarray, " examples"]
    max_length: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """Each example's number of tokens."""
        return np.diff(self.offsets)

    def __getitem__(self, i: int) -> Int32[np.ndarray, " length"]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]


def tokenize(examples: Examples, tokenizer: "Tokenizer", max_length: int) -> Encoded:
    """Token ids of every example, with the tokenizer's special tokens, cut to `max_length` tokens, those included.

    `tokenizer` is left as it is; truncation and padding that it was saved with do not count. Raises UserError if
    `max_length` leaves no room for a text beside the special tokens, or a text comes to no token at all.
    """
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length <= special:
        raise UserError(f"max_length={max_length}: the tokenizer adds {special} tokens of its own; must be more")
    own = tokenizer.from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(max_length)
    encodings = own.encode_batch_fast(examples.texts)
    offsets = np.zeros(len(encodings) + 1, np.int64)
    np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
    if empty := np.flatnonzero(np.diff(offsets) == 0).tolist():
        raise UserError(f"text {empty[0]} ({examples.texts[empty[0]]!r}) comes to no token")
    tokens = np.array([token for encoding in encodings for token in encoding.ids], np.int32)
    return Encoded(tokens, offsets, examples.labels, max_length)
