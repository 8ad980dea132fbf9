"""A backbone with a task's head on it.

Whatever stands under ``head/`` trains with every method, and starts anew for each seed (``methods/start.py``). The
heads that a checkpoint brings, over a vocabulary, are in causal.py and masked.py.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import Key, Linear, dropout, fold

POOLS = ("mean", "first", "last")


class Head(Linear):
    """States to logits: one linear layer or, where the family has an `activation`, a dense layer before it.

    The dense layer is what ``transformers`` puts on the first token of RoBERTa (tanh) and DeBERTa (gelu), new like
    the linear one.
    """

    def __init__(self, width: int, labels: int, activation: Callable[[Array], Array] | None = None):
        super().__init__(width, labels)
        self.dense: Any = nnx.data(None) if activation is None else Linear(width, width)
        self.activation = activation

    def logits(
        self, states: Float[Array, "... width"], rate: Float[Array, ""] | float, key: Key
    ) -> Float[Array, "... labels"]:
        """Dropout before every layer, as in training, if there is a `key`; the result in float32 at least."""
        x = dropout(states, rate, fold(key, 0))
        if self.activation is not None:
            x = dropout(self.activation(self.dense(x)), rate, fold(key, 1))
        return self(x).astype(jnp.promote_types(states.dtype, jnp.float32))


def pooled(
    hidden: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"], pool: str
) -> Float[Array, "batch width"]:
    """One state for each row: the mean of the unmasked tokens', or the first's or last's of them."""
    if pool == "mean":
        weight = mask[..., None].astype(hidden.dtype)
        return (hidden * weight).sum(-2) / weight.sum(-2)
    place = jnp.argmax(mask, axis=-1) if pool == "first" else mask.shape[-1] - 1 - jnp.argmax(mask[:, ::-1], axis=-1)
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


class Classifier(nnx.Module):
    """Sequence classification or regression: hidden states, pooled over the tokens, through a head.

    The head's outputs are logits or values: that is up to the loss (train/losses.py). `pool` is ``mean`` (over unmasked
    tokens, as sentence-transformers trains MiniLM), ``first`` (what the backbone makes of the first token, as
    ``transformers`` classifies with encoders) or ``last`` (the last unmasked token, as it does with decoders).
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
        state = self.backbone.pool_first(hidden) if self.pool == "first" else pooled(hidden, mask, self.pool)
        return self.head.logits(state, rate, fold(key, 1))


class TokenClassifier(nnx.Module):
    """Token classification: every hidden state through a linear head."""

    def __init__(self, backbone: Any, width: int, labels: int):
        self.backbone = backbone
        self.head = Head(width, labels)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"],
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        **how,
    ) -> Float[Array, "batch tokens labels"]:
        hidden = self.backbone(tokens, mask, rate=rate, key=fold(key, 0), **how)
        return self.head.logits(hidden, rate, fold(key, 1))


class SentenceEncoder(nnx.Module):
    """Sentence embedding: hidden states, pooled over the tokens, scaled to length 1 (Reimers & Gurevych, 1908.10084).

    `pool` is one of POOLS. Unlike a Classifier's, its ``first`` is the first token's state itself, as
    sentence-transformers has it. There is nothing new to train.
    """

    def __init__(self, backbone: Any, *, pool: str = "mean"):
        self.backbone = backbone
        self.pool = pool

    def __call__(
        self, tokens: Int[Array, "batch tokens"], mask: Bool[Array, "batch tokens"], **how
    ) -> Float[Array, "batch width"]:
        """Embeddings in float32 at least: their products are cosines."""
        hidden = self.backbone(tokens, mask, **how)
        state = pooled(hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32)), mask, self.pool)
        return state / jnp.linalg.norm(state, axis=-1, keepdims=True)


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
