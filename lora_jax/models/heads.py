"""Backbones with the head of a task.

Every parameter under ``head/`` trains with every method and is initialised for each seed (``methods/method.py``). The
heads over a vocabulary, which a checkpoint contains, are in causal.py and masked.py.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import Key, Linear, dropout, fold
from lora_jax.models.options import ComputeOptions

POOLS = ("mean", "first", "last")


class Head(Linear):
    """Maps states to logits: a linear layer, after a dense layer where the family has an `activation`.

    The dense layer is the one that ``transformers`` applies to the first token of RoBERTa (tanh) and DeBERTa (gelu).
    Both layers are new. `mask` is a slot for a mask of the outputs that the task has, where tasks share a head's shape.
    """

    def __init__(self, d_model: int, labels: int, activation: Callable[[Array], Array] | None = None):
        super().__init__(d_model, labels)
        self.dense: Any = nnx.data(None) if activation is None else Linear(d_model, d_model)
        self.activation = activation
        self.mask: Any = nnx.data(None)

    def logits(
        self, states: Float[Array, "... d_model"], dropout_rate: Float[Array, ""] | float, key: Key
    ) -> Float[Array, "... labels"]:
        """Computes logits in float32 at least. With a `key`, dropout is on before every layer."""
        x = dropout(states, dropout_rate, fold(key, 0))
        if self.activation is not None:
            x = dropout(self.activation(self.dense(x)), dropout_rate, fold(key, 1))
        logits = self(x).astype(jnp.promote_types(states.dtype, jnp.float32))
        return logits if self.mask is None else jnp.where(self.mask, logits, -jnp.inf)


def pool_states(
    hidden: Float[Array, "batch seq d_model"], mask: Bool[Array, "batch seq"], pool: str
) -> Float[Array, "batch d_model"]:
    """Returns one state per text: the mean over its unmasked tokens, or the state of the first or last of them."""
    if pool == "mean":
        weight = mask[..., None].astype(hidden.dtype)
        return (hidden * weight).sum(-2) / weight.sum(-2)
    column = jnp.argmax(mask, axis=-1) if pool == "first" else mask.shape[-1] - 1 - jnp.argmax(mask[:, ::-1], axis=-1)
    return jnp.take_along_axis(hidden, column[:, None, None], axis=1)[:, 0]


class Classifier(nnx.Module):
    """Sequence classification or regression: hidden states are pooled over the tokens and go through a head.

    The loss (train/losses.py) decides whether the outputs are logits or values. `pool` is ``mean`` (over unmasked
    tokens, as sentence-transformers trains MiniLM), ``first`` (the backbone's `pool_first`, as ``transformers``
    classifies with encoders) or ``last`` (the last unmasked token, as it does with decoders).
    """

    def __init__(
        self,
        backbone: Any,
        d_model: int,
        labels: int,
        *,
        pool: str = "mean",
        activation: Callable[[Array], Array] | None = None,
    ):
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
        self.backbone = backbone
        self.head = Head(d_model, labels, activation)
        self.pool = pool

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        types: Int[Array, "batch seq"] | None = None,
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch labels"]:
        """Computes one row of outputs per text. The arguments are the backbone's; not all backbones take `types`."""
        inputs = (tokens, mask) if types is None else (tokens, mask, types)
        hidden = self.backbone(*inputs, dropout_rate=dropout_rate, key=fold(key, 0), options=options)
        state = self.backbone.pool_first(hidden) if self.pool == "first" else pool_states(hidden, mask, self.pool)
        return self.head.logits(state, dropout_rate, fold(key, 1))


class TokenClassifier(nnx.Module):
    """Token classification: a linear head on every hidden state."""

    def __init__(self, backbone: Any, d_model: int, labels: int):
        self.backbone = backbone
        self.head = Head(d_model, labels)

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch seq labels"]:
        """Computes one row of logits per token. The arguments are the backbone's."""
        hidden = self.backbone(tokens, mask, dropout_rate=dropout_rate, key=fold(key, 0), options=options)
        return self.head.logits(hidden, dropout_rate, fold(key, 1))


class SentenceEncoder(nnx.Module):
    """Sentence embedding: hidden states are pooled over the tokens and scaled to length 1.

    This is Sentence-BERT (Reimers & Gurevych, arXiv 1908.10084). `pool` is one of POOLS. Its ``first`` is the first
    token's state itself, as in sentence-transformers, unlike a Classifier's. It has no new parameters.
    """

    def __init__(self, backbone: Any, *, pool: str = "mean"):
        self.backbone = backbone
        self.pool = pool

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch d_model"]:
        """Computes embeddings in float32 at least. Their dot products are cosines. The arguments are the backbone's."""
        hidden = self.backbone(tokens, mask, dropout_rate=dropout_rate, key=key, options=options)
        state = pool_states(hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32)), mask, self.pool)
        return state / jnp.linalg.norm(state, axis=-1, keepdims=True)


class ImageClassifier(nnx.Module):
    """Image classification: a linear head on the class token's state.

    It is called like a `Classifier`, with pixels in place of tokens. All images have one size, so `mask` is ignored.
    """

    def __init__(self, backbone: Any, d_model: int, labels: int):
        self.backbone = backbone
        self.head = Head(d_model, labels)

    def __call__(
        self,
        pixels: Float[Array, "batch height width channels"],
        mask: Bool[Array, "..."] | None = None,
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch labels"]:
        """Computes one row of logits per image. The arguments are the backbone's."""
        hidden = self.backbone(pixels, dropout_rate=dropout_rate, key=fold(key, 0), options=options)
        return self.head.logits(hidden[:, 0], dropout_rate, fold(key, 1))
