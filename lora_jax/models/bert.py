"""BERT (Devlin et al., arXiv 1810.04805) and its small relatives, such as MiniLM: post-norm encoder blocks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import UserError
from lora_jax.models.attention import DROPPING, Front, View, uses_cudnn
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, dropout, fold, gelu, scan_layers, stack


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The part of a checkpoint's ``config.json`` that shapes the computation; the names are Hugging Face's."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    def __post_init__(self):
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act={self.hidden_act!r}: this BERT computes 'gelu' (the exact one) only")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")

    @property
    def longest(self) -> int:
        """The most tokens of a text."""
        return self.max_position_embeddings


class Attention(nnx.Module):
    def __init__(self, config: BertConfig):
        width = config.hidden_size
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.heads = config.num_attention_heads

    def __call__(self, x, view: View, key: Key):
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (f(x, fold(key, i)).reshape(split) for i, f in enumerate((self.q, self.k, self.v)))
        mixed = view.attend(q, k, v, fold(key, 3))
        return self.o(mixed.reshape(x.shape), fold(key, 4))


class Mlp(nnx.Module):
    def __init__(self, width: int, inner: int):
        self.up = Linear(width, inner)
        self.down = Linear(inner, width)

    def __call__(self, x, key: Key):
        return self.down(gelu(self.up(x, fold(key, 0))), fold(key, 1))


class Block(nnx.Module):
    """`attention` makes another family's attention in place of BERT's, from a config with BERT's names."""

    def __init__(self, config: Any, attention: Callable[[Any], nnx.Module] = Attention):
        self.attn = attention(config)
        self.attn_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(self, x, view: View, key: Key):
        mixed = self.attn(x, view, fold(key, 0))
        x = self.attn_norm(x + dropout(mixed, view.rate, fold(key, 1)))
        return self.mlp_norm(x + dropout(self.mlp(x, fold(key, 2)), view.rate, fold(key, 3)))


class Embeddings(nnx.Module):
    def __init__(self, config: BertConfig):
        self.word = Embedding(config.vocab_size, config.hidden_size)
        self.position = Embedding(config.max_position_embeddings, config.hidden_size)
        self.type = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(self, tokens, types, positions, dtype):
        return self.norm(self.word(tokens, dtype) + self.type(types, dtype) + self.position(positions, dtype))


class Bert(nnx.Module):
    """Token ids to hidden states."""

    def __init__(self, config: BertConfig):
        self.embed = Embeddings(config)
        self.layers = stack(lambda: Block(config), config.num_hidden_layers)
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"],
        types: Int[Array, "batch tokens"] | None = None,
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        dtype: DTypeLike = jnp.float32,
        unroll: int | bool = 1,
        remat: str = "none",
        attention: str = "auto",
    ) -> Float[Array, "batch tokens width"]:
        """Hidden states after the last block. With `key`, dropout at `rate` is on, as in training.

        `unroll` and `remat` are `scan_layers`'s, `attention` is one of attention.IMPLEMENTATIONS. Raises UserError for
        more tokens than there are positions.
        """
        longest = self.config.longest
        if tokens.shape[-1] > longest:
            raise UserError(
                f"texts of {tokens.shape[-1]} tokens: this {type(self).__name__} has positions for {longest}"
            )
        types = jnp.zeros_like(tokens) if types is None else types
        x = dropout(self.embed(tokens, types, self.positions(mask), dtype), rate, fold(key, 0))
        d_head = self.config.hidden_size // self.config.num_attention_heads
        cudnn = uses_cudnn(attention, dtype, d_head, {DROPPING: key is not None})
        front = Front.of(mask) if cudnn else Front()
        view = View(mask[:, None, None, :], rate, cudnn, front)

        def apply(block, x, key):
            return block(x, view, key)

        x = scan_layers(self.layers, front.enter(x), fold(key, 1), apply, unroll=unroll, remat=remat)
        return front.leave(x)

    def positions(self, mask: Bool[Array, "batch tokens"]) -> Int[Array, "#batch tokens"]:
        """Each token's row in the table of positions: its place in the text."""
        return jnp.arange(mask.shape[-1])[None]

    def pool_first(self, hidden: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """BERT's pooler: a tanh layer on the first token."""
        return jnp.tanh(self.pooler(hidden[:, 0]))


# Checkpoint names to paths; {} stands for a layer's number. Kernels are transposed on the way in.
NAMES = {
    "embeddings.word_embeddings.weight": "embed/word/embedding",
    "embeddings.position_embeddings.weight": "embed/position/embedding",
    "embeddings.token_type_embeddings.weight": "embed/type/embedding",
    "embeddings.LayerNorm.weight": "embed/norm/scale",
    "embeddings.LayerNorm.bias": "embed/norm/bias",
    "encoder.layer.{}.attention.self.query.weight": "layers/attn/q/kernel",
    "encoder.layer.{}.attention.self.query.bias": "layers/attn/q/bias",
    "encoder.layer.{}.attention.self.key.weight": "layers/attn/k/kernel",
    "encoder.layer.{}.attention.self.key.bias": "layers/attn/k/bias",
    "encoder.layer.{}.attention.self.value.weight": "layers/attn/v/kernel",
    "encoder.layer.{}.attention.self.value.bias": "layers/attn/v/bias",
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
    "pooler.dense.weight": "pooler/kernel",
    "pooler.dense.bias": "pooler/bias",
}

# A checkpoint may carry one of these before every name above.
PREFIXES = ("", "bert.")
# What older checkpoints call a part of a name today.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Tensors that a checkpoint may hold and a backbone has no use for: constants, and heads of other tasks.
IGNORED = (r"(bert\.)?embeddings\.(position_ids|token_type_ids)", r"cls\..*", r"classifier\..*", r"qa_outputs\..*")
# What config.json may leave out but not contradict: this file computes nothing else.
FIXED = {"position_embedding_type": "absolute", "is_decoder": False}
