"""A backbone with a task's head on it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import Key, Linear, dropout, fold

POOLS = ("mean", "first")


class Classifier(nnx.Module):
    """Sequence classification: hidden states, pooled over the tokens, through one linear layer.

    `pool` is ``mean`` (over unmasked tokens, as sentence-transformers trains MiniLM) or ``first`` (the backbone's own
    pooler on the first token, as ``transformers``' BertForSequenceClassification).
    """

    def __init__(self, backbone: Any, width: int, labels: int, *, pool: str = "mean"):
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
        self.backbone = backbone
        self.head = Linear(width, labels)
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
        else:
            pooled = self.backbone.pool_first(hidden)
        return self.head(dropout(pooled, rate, fold(key, 1))).astype(jnp.promote_types(pooled.dtype, jnp.float32))
