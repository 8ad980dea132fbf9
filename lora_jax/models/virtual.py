"""Virtual tokens: tokens without a text, inserted before a text (a prefix) and after its prompt (an infix).

They are inserted as token ids beyond the vocabulary, before anything is embedded. Positions, types, masks and norms
follow as for any token, and only the lookup knows rows for them. Afterwards a backbone returns the states of the text's
own columns, so heads and losses do not change.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lora_jax.models.attention import take_columns


@dataclasses.dataclass(frozen=True)
class Insertion:
    """Inserts virtual tokens into the texts of a batch. Without a `source` it is the identity.

    A text becomes padding, prefix, prompt, infix, the rest of the text, padding. Each text is `tokens` columns longer,
    whatever the numbers of its virtual tokens. Columns to spare are masked.

    Attributes:
      mask: the mask with the virtual tokens.
      source: the text's column that each column takes its token from. A virtual token has that of a token beside it.
      virtual: the number of the virtual token in each column, the prefix first; -1 for the text's own tokens.
      columns: the column that the state of each of the text's columns is taken from.
    """

    mask: Bool[Array, "batch seq+tokens"]
    source: Int[Array, "batch seq+tokens"] | None = None
    virtual: Int[Array, "batch seq+tokens"] | None = None
    columns: Int[Array, "batch seq"] | None = None

    @classmethod
    def of(
        cls,
        slot: Any,
        mask: Bool[Array, "batch seq"],
        prompt_end: Int[Array, " batch"] | None = None,
        *,
        causal: bool = False,
    ) -> "Insertion":
        """Returns the insertion that a backbone's `virtual` slot describes.

        Args:
          slot: what is grafted there, or None. It has two masks of virtual tokens, `prefix` and `infix`, Bool
            ``[tokens]``. The tokens of neither mask are to spare: runs with fewer virtual tokens are padded in a pack.
          mask: False at padding, on either side.
          prompt_end: the first column of each text after its prompt. None: the whole text is the prompt.
          causal: whether the next token is predicted. The state of the prompt's last token is then that of the last
            token of the infix, which predicts what follows, and columns to spare come first, because in a cache other
            tokens follow the last column. Otherwise they come last, because BERT's positions are columns.
        """
        if slot is None:
            return cls(mask)
        seq, tokens = mask.shape[1], slot.prefix.shape[-1]
        prefix, infix = (part.sum(dtype=jnp.int32) for part in (slot.prefix, slot.infix))
        spare = tokens - prefix - infix if causal else 0
        start = jnp.argmax(mask, axis=1)[:, None]
        end = seq - jnp.argmax(mask[:, ::-1], axis=1)[:, None] if prompt_end is None else prompt_end[:, None]

        column = jnp.arange(seq + tokens) - spare
        in_prefix = (column >= start) & (column < start + prefix)
        in_infix = (column >= end + prefix) & (column < end + prefix + infix)
        before = jnp.clip(column - start, 0, prefix) + jnp.clip(column - end - prefix, 0, infix)  # virtual tokens
        source = column - before
        inside = (source >= 0) & (source < seq)
        source = jnp.clip(source - in_infix, 0, seq - 1)  # the infix stands beside the prompt's last token
        virtual = jnp.where(in_prefix | in_infix, before, -1)
        own = jnp.arange(seq)
        columns = own + spare + prefix * (own >= start) + infix * (own >= end - causal)
        extended = (virtual >= 0) | (inside & jnp.take_along_axis(mask, source, axis=1))
        return cls(extended, source, virtual, columns)

    def apply(self, x: Array) -> Array:
        """Returns ``x[batch, seq]`` for all columns. A virtual token has the value of a token beside it."""
        return x if self.source is None else jnp.take_along_axis(x, self.source, axis=1)

    def insert(self, tokens: Int[Array, "batch seq"], vocab_size: int) -> Int[Array, "batch seq+tokens"]:
        """Returns the token ids with those of the virtual tokens, which start at `vocab_size`."""
        if self.virtual is None:
            return tokens
        return jnp.where(self.virtual >= 0, vocab_size + self.virtual, self.apply(tokens))

    def extract(self, hidden: Array) -> Array:
        """Returns the states ``[batch, seq, ...]`` of the text's own columns."""
        return hidden if self.columns is None else take_columns(hidden, self.columns)
