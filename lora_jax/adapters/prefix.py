"""The prefix of prefix-tuning (Li & Liang, arXiv 2101.00190): trained keys and values before those of a text.

Every query attends to them, in a layer with a sliding window too. They have no position: rotary embeddings do not
rotate them, and the text's positions start after them, as in ``transformers`` and PEFT.

Padding the length is exact, because hidden keys get no attention and so no gradient. A prefix of hidden keys alone is
neutral.
"""

from typing import Any, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.errors import UserError


@adapter
class Prefix(Padded):
    """Keys and values of every layer, the same for every text. `visible` says which of them are attended to.

    `visible` of None means all. A grafted prefix always has an array.
    """

    k: Float[Array, "*layers length kv_heads d_head"] = padded_axis(-3)
    v: Float[Array, "*layers length kv_heads d_head"] = padded_axis(-3)
    visible: Bool[Array, "*layers length"] | None = padded_axis(-1, default=None)

    def extend(
        self, k: Float[Array, "batch keys kv_heads d_head"], v: Float[Array, "batch keys kv_heads d_head"]
    ) -> tuple[
        Float[Array, "batch length+keys kv_heads d_head"],
        Float[Array, "batch length+keys kv_heads d_head"],
        Bool[Array, " length"],
    ]:
        """Returns the keys and values with one layer's prefix in front, and which keys of the prefix are visible."""
        assert self.visible is not None, "a grafted prefix says what is visible"
        return _prepend(self.k, k), _prepend(self.v, v), self.visible

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shapes for the heads of `module`, an attention, at the length of this prefix."""
        layers, _, d_out = module.k.kernel.get_value().shape
        length = self.k.shape[-3]
        shape = (layers, length, d_out // module.d_head, module.d_head)
        return {"k": shape, "v": shape, "visible": (layers, length)}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the prefix into the slot `name` of `module`."""
        setattr(module, name, nnx.data(self._complete()))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Raises UserError: no weights compute the same."""
        raise UserError(
            "a prefix cannot be merged: its keys and values enter attention's softmax, which no weights of the base "
            "can do. Graft it"
        )

    def _complete(self) -> Self:
        return self if self.visible is not None else self._replace({"visible": jnp.ones(self.k.shape[:-2], bool)})


@adapter
class Visibility(Padded):
    """The constants of a prefix: which of its keys are attended to in each layer."""

    visible: Bool[Array, "*layers length"] = padded_axis(-1)


def _prepend(prefix: Float[Array, "length kv_heads d_head"], x: Array) -> Array:
    return jnp.concatenate([jnp.broadcast_to(prefix.astype(x.dtype), (len(x), *prefix.shape)), x], axis=1)
