"""Slots: the places in a block where an adapter can stand."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lora_jax.models.layers import Key


class Slot(nnx.Module):
    """A place in a block where an adapter can stand. Passes `x` through until one does.

    Every block has three: `after_attn` (on attention's output, before dropout, residual and norm, where the first
    adapter of Houlsby et al., arXiv 1902.00751, stands), `after_mlp` (likewise on the MLP's output) and `after_block`
    (on the block's result). A slot has no parameters, so it changes neither parameter paths nor fingerprints.
    """

    def __init__(self) -> None:
        self.adapter: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "batch seq d_model"], key: Key = None) -> Float[Array, "batch seq d_model"]:
        """Returns ``adapter(x, key)``, or `x` itself while the slot is empty."""
        return x if self.adapter is None else self.adapter(x, key)
