"""Slots: the places in a block where an adapter can stand.

Every block has three: `after_attn` and `after_mlp`, a `SublayerSlot` each, and `after_block`, a `BlockSlot`. A slot
has no parameters, so it changes neither parameter paths nor fingerprints.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.models.layers import Key


class SublayerSlot(nnx.Module):
    """A place on the output of attention or of the MLP, before dropout, residual and norm.

    The adapters of Houlsby et al. (arXiv 1902.00751) stand here.
    """

    def __init__(self) -> None:
        self.adapter: Any = nnx.data(None)

    def __call__(
        self,
        y: Float[Array, "batch seq d_model"],
        key: Key = None,
        *,
        residual: Float[Array, "batch seq d_model"],
        norm: Any = None,
    ) -> Float[Array, "batch seq d_model"]:
        """Returns ``adapter(y, key, residual=residual, norm=norm)``, or `y` itself while the slot is empty.

        Args:
          y: the output of attention or of the MLP.
          key: the key of dropout.
          residual: what `y` is added to.
          norm: the norm of their sum in a post-norm block, else None.
        """
        return y if self.adapter is None else self.adapter(y, key, residual=residual, norm=norm)


class BlockSlot(nnx.Module):
    """A place on a block's result."""

    def __init__(self) -> None:
        self.adapter: Any = nnx.data(None)

    def __call__(
        self, x: Float[Array, "batch seq d_model"], key: Key = None, *, virtual: Int[Array, "batch seq"] | None = None
    ) -> Float[Array, "batch seq d_model"]:
        """Returns ``adapter(x, key, virtual=virtual)``, or `x` itself while the slot is empty.

        Args:
          x: the block's result.
          key: the key of dropout.
          virtual: the number of the virtual token in each column, -1 for the text's own tokens. None: there are none.
        """
        return x if self.adapter is None else self.adapter(x, key, virtual=virtual)
