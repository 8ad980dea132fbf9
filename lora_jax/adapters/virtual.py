"""Virtual tokens (models/virtual.py): how many there are, their embeddings, and their states between layers.

Padding their number is exact: ``VirtualTokens`` inserts no token for the padding, so nothing looks it up and it has no
gradient. None of them can be merged, because no weights of the base lengthen a text.
"""

from typing import Any, NoReturn

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.errors import UserError
from lora_jax.models.layers import Key


class _Virtual(Padded):
    """What the adapters of virtual tokens share: they stand in slots, and cannot be merged."""

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts itself into the slot `name` of `module`."""
        setattr(module, name, nnx.data(self))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> NoReturn:
        """Raises UserError: no weights compute the same."""
        raise UserError("virtual tokens cannot be merged: no weights of the base insert tokens into a text. Graft them")


@adapter
class VirtualTokens(_Virtual):
    """In a backbone's `virtual` slot: how many virtual tokens there are, as masks of their numbers.

    With a prefix of 2, an infix of 1 and padding for 2 more: prefix 11000, infix 00100.
    """

    prefix: Bool[Array, " tokens"] = padded_axis(-1)
    infix: Bool[Array, " tokens"] = padded_axis(-1)

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns two masks of one length. Any length fits any model."""
        return {"prefix": self.prefix.shape, "infix": self.prefix.shape}


@adapter
class VirtualRows(_Virtual):
    """In an embedding's slot: the embeddings of virtual tokens, whose ids follow the vocabulary's."""

    rows: Float[Array, "tokens d_model"] = padded_axis(-2)

    def lookup(
        self, index: Int[Array, "..."], table: Float[Array, "vocab d_model"], dtype: DTypeLike
    ) -> Float[Array, "... d_model"]:
        """Returns the rows of `table`, and those of virtual tokens for ids from the table's length on."""
        vocab = len(table)
        trained = jnp.take(self.rows.astype(dtype), index - vocab, axis=0, mode="clip")
        rows = jnp.take(table, index, axis=0, mode="clip").astype(dtype)
        return jnp.where((index >= vocab)[..., None], trained, rows)

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape for the width of `module`, an embedding, at this number of tokens."""
        return {"rows": (self.rows.shape[-2], module.embedding.get_value().shape[-1])}


@adapter
class VirtualStates(_Virtual):
    """In the slot after a block: states that replace the block's result at virtual tokens.

    `active` is a mask of the layers whose result is replaced; None replaces all. Zeros in `states` and False in
    `active` are neutral.
    """

    states: Float[Array, "*layers tokens d_model"] = padded_axis(-2)
    active: Bool[Array, "*layers"] | None = None

    def __call__(
        self, x: Float[Array, "batch seq d_model"], key: Key, *, virtual: Int[Array, "batch seq"] | None
    ) -> Float[Array, "batch seq d_model"]:
        """Returns the block's result `x` with the states of the tokens whose numbers `virtual` has."""
        if virtual is None:
            return x
        states = jnp.take(self.states.astype(x.dtype), virtual, axis=0, mode="clip")
        replaced = virtual >= 0 if self.active is None else (virtual >= 0) & self.active
        return jnp.where(replaced[..., None], states, x)

    def check_site(self, module: Any, name: str, *, path: str) -> None:
        """Accepts any slot: it has no parameters to compare with, and the scan over layers refuses other shapes."""
