"""The parts of MiSS's update (arXiv 2409.15371): the shards of the input, and the matrix that multiplies their sum."""

from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.adapters.padded import Padded, adapter, padded_axis


@adapter
class MissBlock(Padded):
    """The trained matrix D of one site. Row i of ΔW is D's row ``index[i]``."""

    d: Float[Array, "*layers rank d_out"] = padded_axis(-2)


@adapter
class MissIndex(Padded):
    """The constants of a block: for each input the row of D that multiplies it, -1 for none."""

    index: Int[Array, "*layers d_in"]

    def neutral(self) -> Self:
        """Returns -1 everywhere: no input is multiplied by D, so D has no gradient."""
        return self._replace({"index": jnp.full_like(self.index, -1)})
