"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751): h(x) = act(x·W_down + b_down)·W_up + b_up, in a slot.

Zero-padding the bottleneck is exact, because every activation of ACTIVATIONS maps 0 to 0: the extra columns of W_down
and b_down and rows of W_up do not change h, and their gradients are exactly zero. A layer without an adapter needs a
mask, because b_up would have a gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.errors import UserError
from lora_jax.models.layers import Key, LayerNorm, gelu

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "gelu": gelu, "silu": jax.nn.silu}
NORM_EPSILON = 1e-5  # of the layer norm that an adapter brings

# What h is computed from: the slot's own value, or the stream: the value plus the residual, and then the block's norm.
Reads = Literal["value", "stream"]


@adapter
class BottleneckKernels(Padded):
    """W_down and W_up of one slot, stacked over layers."""

    down: Float[Array, "*layers d_model bottleneck"] = padded_axis(-1)
    up: Float[Array, "*layers bottleneck d_model"] = padded_axis(-2)


@adapter
class BottleneckBiases(Padded):
    """b_down and b_up of one slot, stacked over layers. They are apart from the kernels, which weight decay shrinks."""

    down: Float[Array, "*layers bottleneck"] = padded_axis(-1)
    up: Float[Array, "*layers d_model"]


@adapter
class Bottleneck(Padded):
    """An adapter in a block's slot: adds h to the slot's value.

    Attributes:
      down: W_down.
      down_bias: b_down.
      up: W_up.
      up_bias: b_up.
      active: a mask of the layers that have an adapter. h is zero in the others.
      scale: the scale of a layer norm of h's input. None: there is no norm.
      bias: the bias of that norm.
      activation: a key of ACTIVATIONS.
      reads: what h is computed from.
    """

    down: Float[Array, "*layers d_model bottleneck"] = padded_axis(-1)
    down_bias: Float[Array, "*layers bottleneck"] = padded_axis(-1)
    up: Float[Array, "*layers bottleneck d_model"] = padded_axis(-2)
    up_bias: Float[Array, "*layers d_model"]
    active: Bool[Array, "*layers"]
    scale: Float[Array, "*layers d_model"] | None
    bias: Float[Array, "*layers d_model"] | None
    activation: str = dataclasses.field(metadata={"static": True})
    reads: Reads = dataclasses.field(metadata={"static": True})

    def __call__(
        self,
        y: Float[Array, "batch seq d_model"],
        key: Key,
        *,
        residual: Float[Array, "batch seq d_model"] | None = None,
        norm: Any = None,
        virtual: Int[Array, "batch seq"] | None = None,
    ) -> Float[Array, "batch seq d_model"]:
        """Computes y + h(y), or y + h(u) where h reads the stream: u = norm(y + residual). It has no dropout."""
        u = y
        if self.reads == "stream" and residual is not None:
            u = y + residual if norm is None else norm(y + residual)
        return y + jnp.where(self.active, self.hidden(u), 0)

    def hidden(self, u: Float[Array, "... d_model"]) -> Float[Array, "... d_model"]:
        """Computes h(u), or h(LN(u)) where the adapter has a norm."""
        if self.scale is not None and self.bias is not None:
            norm = LayerNorm(u.shape[-1], epsilon=NORM_EPSILON)
            norm.scale, norm.bias = nnx.Param(self.scale), nnx.Param(self.bias)
            u = norm(u)
        down, down_bias, up, up_bias = (
            array.astype(u.dtype) for array in (self.down, self.down_bias, self.up, self.up_bias)
        )
        thin: Array = checkpoint_name(u @ down, "thin")  # type: ignore[no-untyped-call]
        h: Array = checkpoint_name(  # type: ignore[no-untyped-call]
            ACTIVATIONS[self.activation](thin + down_bias) @ up, "linear"
        )
        return h + up_bias

    def check_site(self, module: Any, name: str, *, path: str) -> None:
        """Accepts any slot: it has no parameters to compare with, and the scan over layers refuses other shapes."""

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the adapter into the slot `name` of `module`."""
        setattr(module, name, nnx.data(self))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Raises UserError: h is not linear."""
        raise UserError(
            "a bottleneck adapter cannot be merged: it is not linear, so no weights of the base compute the same"
        )
