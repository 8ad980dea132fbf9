"""A backbone with a task's head on it.

Whatever stands under ``head/`` trains with every method, and starts anew for each seed (``methods/start.py``).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import Key, Linear, dropout, fold

POOLS = ("mean", "first", "last")


class Head(Linear):
    """A pooled state to logits: one linear layer or, where the family has an `activation`, a dense layer before it.

    The dense layer is what ``transformers`` puts on the first token of RoBERTa (tanh) and DeBERTa (gelu), new like
    the linear one.
    """

    def __init__(self, width: int, labels: int, activation: Callable[[Array], Array] | None = None):
        super().__init__(width, labels)
        self.dense: Any = nnx.data(None) if activation is None else Linear(width, width)
        self.activation = activation

    def logits(
        self, pooled: Float[Array, "batch width"], rate: Float[Array, ""] | float, key: Key
    ) -> Float[Array, "batch labels"]:
        """Dropout before every layer, as in training, if there is a `key`; the result in float32 at least."""
        x = dropout(pooled, rate, fold(key, 0))
        if self.activation is not None:
            x = dropout(self.activation(self.dense(x)), rate, fold(key, 1))
        return self(x).astype(jnp.promote_types(pooled.dtype, jnp.float32))


class Classifier(nnx.Module):
    """Sequence classification: hidden states, pooled over the tokens, through a head.

    `pool` is ``mean`` (over unmasked tokens, as sentence-transformers trains MiniLM), ``first`` (what the backbone
    makes of the first token, as ``transformers`` classifies with encoders) or ``last`` (the last unmasked token, as it
    does with decoders).
    """

    def __init__(
        self,
        backbone: Any,
        width: int,
        labels: int,
        *,
        pool: str = "mean",
        activation: Callable[[Array], Array] | None = None,
    ):
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
        self.backbone = backbone
        self.head = Head(width, labels, activation)
        self.pool = pool

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"],
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        **how,
    ) -> Float[Array, "batch labels"]:
        hidden = self.backbone(tokens, mask, rate=rate, key=fold(key, 0), **how)
        if self.pool == "mean":
            weight = mask[..., None].astype(hidden.dtype)
            pooled = (hidden * weight).sum(-2) / weight.sum(-2)
        elif self.pool == "last":
            last = mask.shape[-1] - 1 - jnp.argmax(mask[:, ::-1], axis=-1)
            pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        else:
            pooled = self.backbone.pool_first(hidden)
        return self.head.logits(pooled, rate, fold(key, 1))


class ImageClassifier(nnx.Module):
    """Image classification: the class token's last state through a linear head.

    It is called as a `Classifier` is, with pixels for tokens. All pictures of a model have one size, so `mask` has
    nothing to say.
    """

    def __init__(self, backbone: Any, width: int, labels: int):
        self.backbone = backbone
        self.head = Head(width, labels)

    def __call__(
        self,
        pixels: Float[Array, "batch height width channels"],
        mask: Bool[Array, "..."] | None = None,
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        **how,
    ) -> Float[Array, "batch labels"]:
        hidden = self.backbone(pixels, rate=rate, key=fold(key, 0), **how)
        return self.head.logits(hidden[:, 0], rate, fold(key, 1))
