"""BERT (Devlin et al., arXiv 1810.04805) and models of its design, such as MiniLM: post-norm encoder blocks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import UserError
from lora_jax.models.attention import (
    DROPOUT_OBSTACLE,
    PREFIX_OBSTACLE,
    AttentionContext,
    RightPadding,
    after_prefix,
    prefix_size,
    uses_cudnn,
)
from lora_jax.models.fields import Layers, Positive, Size
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, dropout, fold, gelu, scan_layers, stack_layers
from lora_jax.models.options import ComputeOptions
from lora_jax.models.slots import BlockSlot, SublayerSlot
from lora_jax.models.virtual import Insertion


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The keys of ``config.json`` that change the computation, under Hugging Face's names."""

    vocab_size: Size = 30522
    hidden_size: Size = 384
    num_hidden_layers: Layers = 6
    num_attention_heads: Size = 12
    intermediate_size: Size = 1536
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    layer_norm_eps: Positive = 1e-12
    hidden_act: str = "gelu"

    def __post_init__(self):
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act={self.hidden_act!r}: this BERT computes the exact 'gelu' only")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads

    @property
    def d_head(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens in a text."""
        return self.max_position_embeddings


class Attention(nnx.Module):
    def __init__(self, config: BertConfig):
        width = config.hidden_size
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.d_head = config.d_head
        self.prefix: Any = nnx.data(None)

    def __call__(self, x, context: AttentionContext, key: Key):
        by_head = (*x.shape[:-1], -1, self.d_head)
        q, k, v = (f(x, fold(key, i)).reshape(by_head) for i, f in enumerate((self.q, self.k, self.v)))
        mixed = context.attend(q, k, v, fold(key, 3), prefix=self.prefix)
        return self.o(mixed.reshape(x.shape), fold(key, 4))


class Mlp(nnx.Module):
    def __init__(self, d_model: int, d_hidden: int):
        self.up = Linear(d_model, d_hidden)
        self.down = Linear(d_hidden, d_model)

    def __call__(self, x, key: Key):
        return self.down(gelu(self.up(x, fold(key, 0))), fold(key, 1))


class Block(nnx.Module):
    """A post-norm block. `make_attention` creates its attention, from a config with BERT's names."""

    def __init__(self, config: Any, make_attention: Callable[[Any], nnx.Module] = Attention):
        self.attn = make_attention(config)
        self.attn_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.after_attn, self.after_mlp, self.after_block = SublayerSlot(), SublayerSlot(), BlockSlot()

    def __call__(self, x, context: AttentionContext, key: Key):
        mixed = self.attn(x, context, fold(key, 0))
        mixed = self.after_attn(mixed, fold(key, 4), residual=x, norm=self.attn_norm)
        x = self.attn_norm(x + dropout(mixed, context.dropout_rate, fold(key, 1)))
        transformed = self.mlp(x, fold(key, 2))
        transformed = self.after_mlp(transformed, fold(key, 5), residual=x, norm=self.mlp_norm)
        x = self.mlp_norm(x + dropout(transformed, context.dropout_rate, fold(key, 3)))
        return self.after_block(x, fold(key, 6), virtual=context.virtual)


class Embeddings(nnx.Module):
    def __init__(self, config: BertConfig):
        self.word = Embedding(config.vocab_size, config.hidden_size)
        self.position = Embedding(config.max_position_embeddings, config.hidden_size)
        self.type = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(self, tokens, types, positions, dtype):
        return self.norm(self.word(tokens, dtype) + self.type(types, dtype) + self.position(positions, dtype))


class Bert(nnx.Module):
    """Maps token ids to hidden states."""

    def __init__(self, config: BertConfig):
        self.embed = Embeddings(config)
        self.layers = stack_layers(lambda: Block(config), config.num_hidden_layers)
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.virtual: Any = nnx.data(None)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        types: Int[Array, "batch seq"] | None = None,
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch seq d_model"]:
        """Computes the hidden states after the last block.

        Args:
          tokens: token ids.
          mask: False at padding, which may be on either side.
          types: the type (segment) of each token. By default all are 0.
          dropout_rate: the dropout on embeddings, attention's probabilities, and the outputs of attention and MLP.
          key: the key of dropout. None turns it off.
          options: dtype, speed and memory.

        Raises:
          UserError: a text has more tokens than there are positions, with those of a prefix or virtual tokens.
        """
        prefix = self.layers.attn.prefix
        insertion = Insertion.of(self.virtual, mask)
        types = insertion.apply(jnp.zeros_like(tokens) if types is None else types)
        tokens, mask = insertion.insert(tokens, self.config.vocab_size), insertion.mask
        count, max_tokens = tokens.shape[-1] + prefix_size(prefix), self.config.max_tokens
        if count > max_tokens:
            raise UserError(f"texts of {count} tokens: this {type(self).__name__} has positions for {max_tokens}")
        positions = after_prefix(self.positions(mask), prefix)
        x = dropout(self.embed(tokens, types, positions, options.dtype), dropout_rate, fold(key, 0))
        obstacles = {DROPOUT_OBSTACLE: key is not None, PREFIX_OBSTACLE: prefix is not None}
        cudnn = uses_cudnn(options.attention, options.dtype, self.config.d_head, obstacles)
        padding = RightPadding.from_mask(mask) if cudnn else RightPadding()
        virtual = None if insertion.virtual is None else padding.apply(insertion.virtual)
        context = AttentionContext(mask[:, None, None, :], dropout_rate, cudnn, padding, virtual=virtual)

        def apply(block, x, key):
            return block(x, context, key)

        x = scan_layers(self.layers, padding.apply(x), fold(key, 1), apply, options)
        return insertion.extract(padding.undo(x))

    def positions(self, mask: Bool[Array, "batch seq"]) -> Int[Array, "#batch seq"]:
        """Returns each token's row in the table of positions: its column."""
        return jnp.arange(mask.shape[-1])[None]

    def pool_first(self, hidden: Float[Array, "batch seq d_model"]) -> Float[Array, "batch d_model"]:
        """Applies BERT's pooler: a dense layer and tanh on the first token's state."""
        return jnp.tanh(self.pooler(hidden[:, 0]))


# Maps names in checkpoints to parameter paths. {} stands for a layer's number. Loading transposes kernels.
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

# A checkpoint may have one of these before every name above.
PREFIXES = ("", "bert.")
# Maps parts of names in older checkpoints to their names today.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Tensors in a checkpoint that a backbone does not need: constants, and heads of other tasks.
IGNORED = (r"(bert\.)?embeddings\.(position_ids|token_type_ids)", r"cls\..*", r"classifier\..*", r"qa_outputs\..*")
# Keys that config.json must set to these values or leave out: this file computes nothing else.
FIXED = {"position_embedding_type": "absolute", "is_decoder": False}
