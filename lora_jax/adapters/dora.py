"""DoRA (Liu et al., arXiv 2402.09353): W' = m ⊙ (W + A·B) / ‖W + A·B‖, with a length m for each column, trained.

A column of a kernel ``[d_in, d_out]`` is what one output reads, as PEFT's rows of the transposed kernel are. The norm
is a constant in the gradient (section 4.3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lora_jax.adapters.low_rank import LowRank
from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.errors import UserError
from lora_jax.models.layers import Kernel, Key


@adapter
class Magnitude(Padded):
    """The trained lengths of a site's columns, m. Zeros in layers that are not adapted."""

    value: Float[Array, "*layers d_out"]


@adapter
class Dora(Padded):
    """A low-rank pair and the lengths of the columns of W + A·B.

    Where `active` is False the columns keep the lengths that they have, so a pair of zeros, zeros in `magnitude` and
    False are neutral.
    """

    a: Float[Array, "*layers d_in rank"] = padded_axis(-1)
    b: Float[Array, "*layers rank d_out"] = padded_axis(-2)
    magnitude: Float[Array, "*layers d_out"]
    active: Bool[Array, "*layers"]
    dropout: Float[Array, "*layers"] | None = None
    factor_dropout: Float[Array, "*layers"] | None = None

    def __call__(self, x: Float[Array, "... d_in"], kernel: Kernel, key: Key) -> Float[Array, "... d_out"]:
        """Computes x·W', with dropout if there is a `key`.

        Dropout leaves x·W alone, as in LoRA. PEFT rescales x·W with the dropped-out x.
        """
        pair = self._pair().masked(key)
        return pair(x, kernel, key) * self._factor(kernel, pair).astype(x.dtype)

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all fields for the kernel of `module`, at the rank of this pair."""
        *layers, _, d_out = getattr(module, module.weight).get_value().shape
        return {**self._pair().shapes_at(module, name), "magnitude": (*layers, d_out), "active": tuple(layers)}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the adapter into the slot `name` of `module`."""
        setattr(module, name, nnx.data(self))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Replaces the kernel of `module` by W'.

        Raises:
          UserError: `sign` is -1. W' does not have the columns' lengths in W + A·B, which undoing would need.
        """
        if sign != 1:
            raise UserError("DoRA cannot be undone after merging: a merged kernel has lost its columns' lengths")
        kernel, pair = getattr(module, module.weight).get_value(), self._pair()
        product = pair.product()
        merged = (kernel.astype(product.dtype) + product) * self._factor(kernel, pair)[..., None, :]
        setattr(module, module.weight, nnx.Param(merged.astype(kernel.dtype)))

    def _pair(self) -> LowRank:
        return LowRank(self.a, self.b, self.dropout, self.factor_dropout)

    def _factor(self, kernel: Kernel, pair: LowRank) -> Float[Array, "*layers d_out"]:
        """Returns m / ‖W + A·B‖, and 1 where the columns keep their lengths."""
        norms = column_norms(kernel, pair.a, pair.b)
        rescaled = self.active[..., None] & (norms > 0)
        return jnp.where(rescaled, self.magnitude / jnp.where(rescaled, norms, 1), 1)


def column_norms(
    kernel: Kernel, a: Float[Array, "*layers d_in rank"], b: Float[Array, "*layers rank d_out"]
) -> Float[Array, "*layers d_out"]:
    """Computes the norms of the columns of W + A·B in float32 at least, as constants for gradients.

    From ‖w + A·b‖² = ‖w‖² + bᵀ(2·Aᵀw + AᵀA·b), so that packed runs form no kernel each. The terms cancel only where
    A·b nearly undoes w.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    w, a, b = (jax.lax.stop_gradient(array.astype(wide)) for array in (kernel, a, b))
    transposed = jnp.swapaxes(a, -1, -2)
    inner = 2 * jnp.matmul(transposed, w, precision="highest")
    inner += jnp.matmul(jnp.matmul(transposed, a, precision="highest"), b, precision="highest")
    return jnp.sqrt(jnp.maximum((w * w).sum(-2) + (b * inner).sum(-2), 0))
