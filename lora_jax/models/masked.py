"""Masked language modelling on an encoder: from hidden states to the logits of each token."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import Key, LayerNorm, Linear, gelu
from lora_jax.models.options import ComputeOptions


class MaskedHead(nnx.Module):
    """The layers between an encoder and its embedding table: a dense layer, a norm, and a bias for each token id."""

    def __init__(self, config: Any):
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))


class MaskedLM(nnx.Module):
    """An encoder with an output layer over its vocabulary: dense, gelu, norm, the word embedding's transpose.

    The heads of BERT, RoBERTa and both DeBERTas compute this, under other names (see below). The head comes from the
    checkpoint, so it is `lm_head`, a part of the base, and not a new `head`.
    """

    def __init__(self, backbone: Any):
        self.backbone = backbone
        self.lm_head = MaskedHead(backbone.config)
        self.tied = "backbone/embed/word"

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch seq vocab"]:
        """Computes logits in float32 at least. The arguments are the backbone's."""
        return self.logits(self.backbone(tokens, mask, dropout_rate=dropout_rate, key=key, options=options))

    def logits(self, hidden: Float[Array, "... d_model"]) -> Float[Array, "... vocab"]:
        """Returns the logits from hidden states.

        It is a method of its own so that a loss can compute the logits a chunk at a time.
        """
        head = self.lm_head
        logits = self.backbone.embed.word.attend(head.norm(gelu(head.dense(hidden))))
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        return logits.astype(wide) + head.bias.astype(wide)


class Names(NamedTuple):
    """The names of the head's tensors in a checkpoint.

    Attributes:
      prefix: what all of them begin with, and no other tensor does.
      paths: their names, with `prefix`, to parameter paths.
    """

    prefix: str
    paths: Mapping[str, str]


def _names(prefix: str, dense: str, norm: str) -> Names:
    parts = {
        f"{dense}.weight": "lm_head/dense/kernel",
        f"{dense}.bias": "lm_head/dense/bias",
        f"{norm}.weight": "lm_head/norm/scale",
        f"{norm}.bias": "lm_head/norm/bias",
        "bias": "lm_head/bias",
    }
    return Names(prefix, {prefix + name: path for name, path in parts.items()})


BERT = _names("cls.predictions.", "transform.dense", "transform.LayerNorm")
ROBERTA = _names("lm_head.", "dense", "layer_norm")
# As in Microsoft's checkpoints. transformers also has BERT's names for DeBERTa, and calls them `legacy`.
DEBERTA = _names("lm_predictions.lm_head.", "dense", "LayerNorm")
# Keys that config.json must set to these values or leave out: this file computes nothing else.
FIXED = {"tie_word_embeddings": True}
