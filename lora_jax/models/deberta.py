"""DeBERTa v2 and v3 (He et al., arXiv 2006.03654 and 2111.09543): attention that tells content from position.

A score is content·content + content·position + position·content (eq. 4 of the first), over √(3·d_head). A position is
the distance from query to key, in logarithmic buckets; its vectors go through the layer's own q and k, so that LoRA
on those adapts both. v2's large models add to the first layer's output a convolution of the embeddings.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import View, uses_cudnn
from lora_jax.models.bert import Block
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, dropout, fold, scan_layers, stack

SUPPORTED: dict[str, Any] = {
    "hidden_act": "gelu",
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
CONV_ACTIVATIONS = {"tanh": jnp.tanh, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


@dataclasses.dataclass(frozen=True)
class DebertaConfig:
    """The part of a checkpoint's ``config.json`` that shapes the computation; the names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float
    max_relative_positions: int
    position_buckets: int
    pos_att_type: str | Sequence[str]
    hidden_act: str
    relative_attention: bool
    share_att_key: bool
    norm_rel_ebd: str
    position_biased_input: bool
    type_vocab_size: int
    conv_kernel_size: int = 0
    conv_act: str = "tanh"

    def __post_init__(self):
        for name, only in SUPPORTED.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name}={getattr(self, name)!r}: this DeBERTa computes {only!r} only")
        parts = self.pos_att_type
        object.__setattr__(self, "pos_att_type", tuple(parts.split("|") if isinstance(parts, str) else parts))
        if sorted(self.pos_att_type) != ["c2p", "p2c"]:
            raise ValueError(f"pos_att_type={parts!r}: this DeBERTa computes 'c2p|p2c' only")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size}: must be odd, or 0 for no convolution")
        if self.conv_act not in CONV_ACTIVATIONS:
            raise ValueError(f"conv_act={self.conv_act!r}: must be one of {', '.join(CONV_ACTIVATIONS)}")

    @property
    def farthest(self) -> int:
        """The distance that counts as the farthest."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """How many distances, or buckets of them, are told apart on each side."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest


class Positions(NamedTuple):
    """The vectors of those distances that `tokens` places have, and which of them belongs to each distance."""

    vectors: Float[Array, "used width"]
    row: Int[np.ndarray, " 2*tokens-1"]  # into `vectors`, for distances 1 - tokens, ..., tokens - 1


@dataclasses.dataclass(frozen=True)
class DebertaView(View):
    """What every block is told beside its input."""

    mask: Bool[Array, "batch 1 1 keys"]
    positions: Positions = dataclasses.field(kw_only=True)


class Attention(nnx.Module):
    def __init__(self, config: DebertaConfig):
        width = config.hidden_size
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.heads = config.num_attention_heads

    def __call__(self, x, view: DebertaView, key: Key):
        def split(x):
            return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

        q, k, v = (split(f(x, fold(key, i))) for i, f in enumerate((self.q, self.k, self.v)))
        vectors = dropout(view.positions.vectors, view.rate, fold(key, 5))
        # Which distance a place of a square of scores has is fixed, so no score is gathered: each query meets every
        # distance's key once (and each key every distance's query), and `shift` puts the products where they belong.
        far_q, far_k = (
            jnp.take(split(f(vectors, fold(key, i))), view.positions.row, axis=0) for i, f in ((6, self.q), (7, self.k))
        )
        scores = jnp.einsum("bthd,bshd->bhts", q, k)
        scores += shift(jnp.einsum("bthd,mhd->bhtm", q, far_k[::-1]))
        scores += shift(jnp.einsum("bshd,mhd->bhsm", k, far_q)).swapaxes(-1, -2)
        scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32)) * (3 * q.shape[-1]) ** -0.5
        scores = jnp.where(view.mask, scores, jnp.finfo(scores.dtype).min)
        weights = dropout(jax.nn.softmax(scores, axis=-1).astype(x.dtype), view.rate, fold(key, 3))
        mixed = checkpoint_name(jnp.einsum("bhts,bshd->bthd", weights, v), "attention")
        return self.o(mixed.reshape(x.shape), fold(key, 4))


class Conv(nnx.Module):
    """A convolution over neighbouring tokens, as a linear layer over windows of them."""

    def __init__(self, config: DebertaConfig):
        self.window = Linear(config.hidden_size * config.conv_kernel_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.size = config.conv_kernel_size
        self.activation = config.conv_act

    def __call__(self, x, mask, rate, key: Key):
        half, tokens = self.size // 2, x.shape[1]
        padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
        # A window's numbers lie as in a convolution's kernel: the channels, and within one its neighbours.
        windows = jnp.stack([padded[:, i : i + tokens] for i in range(self.size)], axis=-1).reshape(*x.shape[:2], -1)
        mixed = jnp.where(mask[..., None], self.window(windows, fold(key, 0)), 0)
        return CONV_ACTIVATIONS[self.activation](dropout(mixed, rate, fold(key, 1)))


class Embeddings(nnx.Module):
    def __init__(self, config: DebertaConfig):
        self.word = Embedding(config.vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.distance = Embedding(2 * config.span, config.hidden_size)
        self.distance_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(self, tokens, mask, dtype):
        return self.norm(self.word(tokens, dtype)) * mask[..., None].astype(dtype)


class Deberta(nnx.Module):
    """Token ids to hidden states."""

    def __init__(self, config: DebertaConfig):
        self.embed = Embeddings(config)
        self.conv = Conv(config) if config.conv_kernel_size else nnx.data(None)
        self.layers = stack(lambda: Block(config, Attention), config.num_hidden_layers)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"],
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        dtype: DTypeLike = jnp.float32,
        unroll: int | bool = 1,
        remat: str = "none",
        attention: str = "auto",
    ) -> Float[Array, "batch tokens width"]:
        """Hidden states after the last block; at masked places, numbers without meaning.

        With `key`, dropout at `rate` is on, as in training. `unroll` and `remat` are `scan_layers`'s. `attention` is
        XLA's; raises UserError for ``cudnn``. Any number of tokens will do: distances beyond the farthest count as
        that.
        """
        d_head = self.config.hidden_size // self.config.num_attention_heads
        uses_cudnn(attention, dtype, d_head, {"DeBERTa adds positions to its scores": True})  # only to refuse it
        embedded = dropout(self.embed(tokens, mask, dtype), rate, fold(key, 0))
        used, row = np.unique(distances(tokens.shape[-1], self.config) + self.config.span, return_inverse=True)
        vectors = self.embed.distance_norm(self.embed.distance(jnp.asarray(used), dtype))
        view = DebertaView(mask[:, None, None, :], rate, positions=Positions(vectors, row))
        # The convolution reads the embeddings only, so it stays out of the scan; what it adds goes in after layer 0.
        added = None if self.conv is None else self.conv(embedded, mask, rate, fold(key, 2))

        def join(x):
            return self.conv.norm(x + added) * mask[..., None].astype(dtype)

        def apply(item, x, key):
            block, first = item
            x = block(x, view, key)
            return x if added is None else jax.lax.cond(first, join, lambda x: x, x)

        items = (self.layers, jnp.arange(self.config.num_hidden_layers) == 0)
        return scan_layers(items, embedded, fold(key, 1), apply, unroll=unroll, remat=remat)

    def pool_first(self, hidden: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """The first token, [CLS], as it is; the head has a dense layer of its own for it."""
        return hidden[:, 0]


def distances(tokens: int, config: DebertaConfig) -> Int[np.ndarray, " 2*tokens-1"]:
    """The bucket of every distance from 1 - tokens to tokens - 1, from -span to span - 1.

    Up to half of `position_buckets` a distance has a bucket of its own; from there on buckets grow logarithmically.
    """
    distance = np.arange(1 - tokens, tokens)
    if config.position_buckets > 0:
        half = config.position_buckets // 2
        # In float32, operation for operation as the reference: a rounding error would move a distance's bucket.
        size = np.maximum(np.abs(distance), half).astype(np.float32)
        ratio = np.log(size / np.float32(half)) / np.log(np.float32((config.farthest - 1) / half))
        bucket = (np.ceil(ratio * np.float32(half - 1)) + half).astype(int) * np.sign(distance)
        distance = np.where(np.abs(distance) <= half, distance, bucket)
    return np.clip(distance, -config.span, config.span - 1)


def shift(scores: Float[Array, "... tokens 2*tokens-1"]) -> Float[Array, "... tokens tokens"]:
    """out[i, j] = scores[i, j - i + tokens - 1], by padding and reshaping alone."""
    *lead, tokens, columns = scores.shape
    flat = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(0, 1)]).reshape(*lead, -1)
    rows = flat[..., tokens - 1 : tokens - 1 + tokens * columns].reshape(*lead, tokens, columns)
    return rows[..., :tokens]


# The tables are explained in bert.py. A convolution's kernel is flattened when it is loaded (weights/load.py).
NAMES = {
    "embeddings.word_embeddings.weight": "embed/word/embedding",
    "embeddings.LayerNorm.weight": "embed/norm/scale",
    "embeddings.LayerNorm.bias": "embed/norm/bias",
    "encoder.rel_embeddings.weight": "embed/distance/embedding",
    "encoder.LayerNorm.weight": "embed/distance_norm/scale",
    "encoder.LayerNorm.bias": "embed/distance_norm/bias",
    "encoder.conv.conv.weight": "conv/window/kernel",
    "encoder.conv.conv.bias": "conv/window/bias",
    "encoder.conv.LayerNorm.weight": "conv/norm/scale",
    "encoder.conv.LayerNorm.bias": "conv/norm/bias",
    "encoder.layer.{}.attention.self.query_proj.weight": "layers/attn/q/kernel",
    "encoder.layer.{}.attention.self.query_proj.bias": "layers/attn/q/bias",
    "encoder.layer.{}.attention.self.key_proj.weight": "layers/attn/k/kernel",
    "encoder.layer.{}.attention.self.key_proj.bias": "layers/attn/k/bias",
    "encoder.layer.{}.attention.self.value_proj.weight": "layers/attn/v/kernel",
    "encoder.layer.{}.attention.self.value_proj.bias": "layers/attn/v/bias",
    "encoder.layer.{}.attention.output.dense.weight": "layers/attn/o/kernel",
    "encoder.layer.{}.attention.output.dense.bias": "layers/attn/o/bias",
    "encoder.layer.{}.attention.output.LayerNorm.weight": "layers/attn_norm/scale",
    "encoder.layer.{}.attention.output.LayerNorm.bias": "layers/attn_norm/bias",
    "encoder.layer.{}.intermediate.dense.weight": "layers/mlp/up/kernel",
    "encoder.layer.{}.intermediate.dense.bias": "layers/mlp/up/bias",
    "encoder.layer.{}.output.dense.weight": "layers/mlp/down/kernel",
    "encoder.layer.{}.output.dense.bias": "layers/mlp/down/bias",
    "encoder.layer.{}.output.LayerNorm.weight": "layers/mlp_norm/scale",
    "encoder.layer.{}.output.LayerNorm.bias": "layers/mlp_norm/bias",
}
WINDOWS = {"encoder.conv.conv.weight": lambda config: (config.hidden_size, config.conv_kernel_size)}  # see vit.py
PREFIXES = ("", "deberta.")
IGNORED = (
    r"(deberta\.)?embeddings\.(position_ids|position_embeddings\.weight)",
    r"(lm_predictions|mask_predictions|cls)\..*",
    r"(pooler|classifier)\..*",
    r"qa_outputs\..*",
)
FIXED = {"conv_groups": 1, "pooler_hidden_act": "gelu"}
