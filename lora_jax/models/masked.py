"""Masked language modelling on an encoder: hidden states to the logits of the token that stands at each place."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import LayerNorm, Linear, gelu


class MaskedHead(nnx.Module):
    """What stands between an encoder and its own embedding table: a dense layer, a norm, and a bias for each word."""

    def __init__(self, config: Any):
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))


class MaskedLM(nnx.Module):
    """An encoder with its vocabulary on top: a dense layer, gelu, a norm, then the word embedding's transpose.

    BERT's, RoBERTa's and both DeBERTas' heads are this one under other names (below). It comes from the checkpoint,
    so it is `lm_head`, part of the base, and not a `head` that starts anew.
    """

    def __init__(self, backbone: Any):
        self.backbone = backbone
        self.lm_head = MaskedHead(backbone.config)
        self.tied = "backbone/embed/word"

    def __call__(
        self, tokens: Int[Array, "batch tokens"], mask: Bool[Array, "batch tokens"], **how
    ) -> Float[Array, "batch tokens vocabulary"]:
        """Logits in float32 at least."""
        return self.logits(self.backbone(tokens, mask, **how))

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocabulary"]:
        """The logits from hidden states; apart, so that a loss can take them a chunk at a time."""
        head = self.lm_head
        logits = self.backbone.embed.word.attend(head.norm(gelu(head.dense(hidden))))
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        return logits.astype(wide) + head.bias.astype(wide)


class Names(NamedTuple):
    """What checkpoints call the head's parts: everything that starts with `place`, and which path takes it."""

    place: str
    paths: Mapping[str, str]


def _names(place: str, dense: str, norm: str) -> Names:
    parts = {
        f"{dense}.weight": "lm_head/dense/kernel",
        f"{dense}.bias": "lm_head/dense/bias",
        f"{norm}.weight": "lm_head/norm/scale",
        f"{norm}.bias": "lm_head/norm/bias",
        "bias": "lm_head/bias",
    }
    return Names(place, {place + name: path for name, path in parts.items()})


BERT = _names("cls.predictions.", "transform.dense", "transform.LayerNorm")
ROBERTA = _names("lm_head.", "dense", "layer_norm")
# As Microsoft's checkpoints have it; transformers gives DeBERTa BERT's names too, and calls them `legacy`.
DEBERTA = _names("lm_predictions.lm_head.", "dense", "LayerNorm")
# What config.json may leave out but not contradict: this file computes nothing else.
FIXED = {"tie_word_embeddings": True}
