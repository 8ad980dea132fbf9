"""DeBERTa v2 and v3 (He et al., arXiv 2006.03654 and 2111.09543): attention with separate content and position.

A score is content·content + content·position + position·content (eq. 4 of the first), over √(3·d_head). A position is
the distance from query to key, in logarithmic buckets. Its embedding goes through the layer's own q and k, so LoRA on
those adapts both uses. v2's large models add a convolution of the embeddings to the first layer's output.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import AttentionContext, uses_cudnn
from lora_jax.models.bert import Block
from lora_jax.models.fields import Count, Layers, Positive, Size, SizeOrNegative
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, dropout, fold, scan_layers, stack_layers
from lora_jax.models.options import ComputeOptions
from lora_jax.models.virtual import Insertion

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
    """The keys of ``config.json`` that change the computation, under Hugging Face's names."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size
    layer_norm_eps: Positive
    max_relative_positions: SizeOrNegative
    position_buckets: SizeOrNegative
    pos_att_type: str | Sequence[str]
    hidden_act: str
    relative_attention: bool
    share_att_key: bool
    norm_rel_ebd: str
    position_biased_input: bool
    type_vocab_size: Count
    conv_kernel_size: Count = 0
    conv_act: str = "tanh"

    def __post_init__(self):
        for name, value in SUPPORTED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r}: this DeBERTa computes {value!r} only")
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
    def d_head(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_distance(self) -> int:
        """The largest distance that is distinguished. Greater ones count as this one."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """The number of distances, or of buckets of distances, on each side."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance


class RelativePositions(NamedTuple):
    """Embeddings of the distances that occur in texts of `seq` tokens.

    Attributes:
      embeddings: one row per bucket that occurs.
      rows: the row of `embeddings` for each of the distances 1 - seq, ..., seq - 1.
    """

    embeddings: Float[Array, "buckets d_model"]
    rows: Int[np.ndarray, " 2*seq-1"]


@dataclasses.dataclass(frozen=True)
class DebertaContext(AttentionContext):
    """What every block receives beside its input."""

    mask: Bool[Array, "batch 1 1 keys"]
    positions: RelativePositions = dataclasses.field(kw_only=True)


class Attention(nnx.Module):
    def __init__(self, config: DebertaConfig):
        width = config.hidden_size
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.d_head = config.d_head

    def __call__(self, x, context: DebertaContext, key: Key):
        def split_heads(x):
            return x.reshape(*x.shape[:-1], -1, self.d_head)

        q, k, v = (split_heads(f(x, fold(key, i))) for i, f in enumerate((self.q, self.k, self.v)))
        embeddings, rows = context.positions
        embeddings = dropout(embeddings, context.dropout_rate, fold(key, 5))
        # The distance between query and key depends only on their columns, so no score is gathered: every query is
        # multiplied with every distance's key (and every key with every distance's query), and `relative_shift` moves
        # the products to their columns.
        position_q, position_k = (
            jnp.take(split_heads(f(embeddings, fold(key, i))), rows, axis=0) for i, f in ((6, self.q), (7, self.k))
        )
        scores = jnp.einsum("bthd,bshd->bhts", q, k)
        scores += relative_shift(jnp.einsum("bthd,mhd->bhtm", q, position_k[::-1]))
        scores += relative_shift(jnp.einsum("bshd,mhd->bhsm", k, position_q)).swapaxes(-1, -2)
        scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32)) * (3 * q.shape[-1]) ** -0.5
        scores = jnp.where(context.mask, scores, jnp.finfo(scores.dtype).min)
        weights = dropout(jax.nn.softmax(scores, axis=-1).astype(x.dtype), context.dropout_rate, fold(key, 3))
        mixed = checkpoint_name(jnp.einsum("bhts,bshd->bthd", weights, v), "attention")
        return self.o(mixed.reshape(x.shape), fold(key, 4))


class Conv(nnx.Module):
    """A convolution over neighbouring tokens, computed as a linear layer on windows of them."""

    def __init__(self, config: DebertaConfig):
        self.window = Linear(config.hidden_size * config.conv_kernel_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.size = config.conv_kernel_size
        self.activation = config.conv_act

    def __call__(self, x, mask, dropout_rate, key: Key):
        half, seq = self.size // 2, x.shape[1]
        padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
        # A window is laid out as in a convolution's kernel: channel by channel, and neighbours within each.
        windows = jnp.stack([padded[:, i : i + seq] for i in range(self.size)], axis=-1).reshape(*x.shape[:2], -1)
        mixed = jnp.where(mask[..., None], self.window(windows, fold(key, 0)), 0)
        return CONV_ACTIVATIONS[self.activation](dropout(mixed, dropout_rate, fold(key, 1)))


class Embeddings(nnx.Module):
    def __init__(self, config: DebertaConfig):
        self.word = Embedding(config.vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.distance = Embedding(2 * config.span, config.hidden_size)
        self.distance_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(self, tokens, mask, dtype):
        return self.norm(self.word(tokens, dtype)) * mask[..., None].astype(dtype)


class Deberta(nnx.Module):
    """Maps token ids to hidden states."""

    def __init__(self, config: DebertaConfig):
        self.embed = Embeddings(config)
        self.conv = Conv(config) if config.conv_kernel_size else nnx.data(None)
        self.layers = stack_layers(lambda: Block(config, Attention), config.num_hidden_layers)
        self.virtual: Any = nnx.data(None)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch seq d_model"]:
        """Computes the hidden states after the last block. At masked columns they have no meaning.

        Texts may have any number of tokens: distances beyond `max_distance` count as that one.

        Args:
          tokens: token ids.
          mask: False at padding, which may be on either side.
          dropout_rate: the dropout on embeddings, attention's probabilities, and the outputs of attention and MLP.
          key: the key of dropout. None turns it off.
          options: dtype, speed and memory. XLA computes attention.

        Raises:
          UserError: `options.attention` is ``cudnn``, or a prefix is grafted.
        """
        dtype = options.dtype
        # Never true. Called for its error where `options.attention` is "cudnn".
        uses_cudnn(options.attention, dtype, self.config.d_head, {"DeBERTa adds positions to its scores": True})
        insertion = Insertion.of(self.virtual, mask)
        tokens, mask = insertion.insert(tokens, self.config.vocab_size), insertion.mask
        embedded = dropout(self.embed(tokens, mask, dtype), dropout_rate, fold(key, 0))
        buckets, rows = np.unique(
            distance_buckets(tokens.shape[-1], self.config) + self.config.span, return_inverse=True
        )
        embeddings = self.embed.distance_norm(self.embed.distance(jnp.asarray(buckets), dtype))
        positions = RelativePositions(embeddings, rows)
        virtual = insertion.virtual
        context = DebertaContext(mask[:, None, None, :], dropout_rate, virtual=virtual, positions=positions)
        # The convolution reads the embeddings alone, so it stays outside the scan. Its output is added after layer 0.
        conv_output = None if self.conv is None else self.conv(embedded, mask, dropout_rate, fold(key, 2))

        def add_conv(x):
            return self.conv.norm(x + conv_output) * mask[..., None].astype(dtype)

        def apply(item, x, key):
            block, is_first = item
            x = block(x, context, key)
            return x if conv_output is None else jax.lax.cond(is_first, add_conv, lambda x: x, x)

        items = (self.layers, jnp.arange(self.config.num_hidden_layers) == 0)
        return insertion.extract(scan_layers(items, embedded, fold(key, 1), apply, options))

    def pool_first(self, hidden: Float[Array, "batch seq d_model"]) -> Float[Array, "batch d_model"]:
        """Returns the state of the first token, [CLS]. The classifier's head applies a dense layer to it."""
        return hidden[:, 0]


def distance_buckets(seq: int, config: DebertaConfig) -> Int[np.ndarray, " 2*seq-1"]:
    """Returns the bucket, from -span to span - 1, of every distance from 1 - seq to seq - 1.

    Up to half of `position_buckets` a distance has a bucket of its own. Beyond, buckets grow logarithmically.
    """
    distance = np.arange(1 - seq, seq)
    if config.position_buckets > 0:
        half = config.position_buckets // 2
        # In float32 and in the reference's order of operations: a rounding error would put a distance elsewhere.
        size = np.maximum(np.abs(distance), half).astype(np.float32)
        ratio = np.log(size / np.float32(half)) / np.log(np.float32((config.max_distance - 1) / half))
        bucket = (np.ceil(ratio * np.float32(half - 1)) + half).astype(int) * np.sign(distance)
        distance = np.where(np.abs(distance) <= half, distance, bucket)
    return np.clip(distance, -config.span, config.span - 1)


def relative_shift(scores: Float[Array, "... seq 2*seq-1"]) -> Float[Array, "... seq seq"]:
    """Returns ``out[i, j] = scores[i, j - i + seq - 1]``, by padding and reshaping alone."""
    *lead, seq, columns = scores.shape
    flat = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(0, 1)]).reshape(*lead, -1)
    rows = flat[..., seq - 1 : seq - 1 + seq * columns].reshape(*lead, seq, columns)
    return rows[..., :seq]


# bert.py explains these tables. Loading (weights/load.py) flattens a convolution's kernel.
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
WINDOWS = {"encoder.conv.conv.weight": lambda config: (config.hidden_size, config.conv_kernel_size)}  # as in vit.py
PREFIXES = ("", "deberta.")
IGNORED = (
    r"(deberta\.)?embeddings\.(position_ids|position_embeddings\.weight)",
    r"(lm_predictions|mask_predictions|cls)\..*",
    r"(pooler|classifier)\..*",
    r"qa_outputs\..*",
)
FIXED = {"conv_groups": 1, "pooler_hidden_act": "gelu"}
