"""GPT-2 (Radford et al., 2019): pre-norm blocks, learned positions, the embedding as the output layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lora_jax.errors import UserError
from lora_jax.models.attention import prefix_size
from lora_jax.models.causality import Cache
from lora_jax.models.decoder import Decoder, DecoderContext, LayerSpec
from lora_jax.models.fields import Layers, Positive, Size
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, dropout, fold, stack_layers
from lora_jax.models.slots import BlockSlot, SublayerSlot


@dataclasses.dataclass(frozen=True)
class Gpt2Config:
    """The keys of ``config.json`` that change the computation, with Hugging Face's names and defaults."""

    vocab_size: Size
    n_embd: Size
    n_layer: Layers
    n_head: Size
    n_positions: Size = 1024
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Positive = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.activation_function != "gelu_new":
            raise ValueError(f"activation_function={self.activation_function!r}: this GPT-2 computes 'gelu_new' only")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of {self.n_head} heads")

    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens in a text."""
        return self.n_positions

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        return (LayerSpec(),) * self.n_layer

    @property
    def kv_heads(self) -> int:
        return self.n_head

    @property
    def d_head(self) -> int:
        return self.n_embd // self.n_head


class Attention(nnx.Module):
    def __init__(self, config: Gpt2Config):
        self.q, self.k, self.v, self.o = (Linear(config.n_embd, config.n_embd) for _ in range(4))
        self.d_head = config.d_head
        self.prefix: Any = nnx.data(None)

    def __call__(self, x, context: DecoderContext, key: Key):
        by_head = (*x.shape[:-1], -1, self.d_head)
        q, k, v = (f(x, fold(key, i)).reshape(by_head) for i, f in enumerate((self.q, self.k, self.v)))
        mixed, cache = context.attend_with_cache(q, k, v, fold(key, 3), prefix=self.prefix)
        return self.o(mixed.reshape(x.shape), fold(key, 4)), cache


class Mlp(nnx.Module):
    def __init__(self, config: Gpt2Config):
        inner = config.n_inner or 4 * config.n_embd
        self.up = Linear(config.n_embd, inner)
        self.down = Linear(inner, config.n_embd)

    def __call__(self, x, key: Key):
        return self.down(jax.nn.gelu(self.up(x, fold(key, 0)), approximate=True), fold(key, 1))


class Block(nnx.Module):
    def __init__(self, config: Gpt2Config):
        self.attn_norm = LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.mlp_norm = LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon)
        self.mlp = Mlp(config)
        self.after_attn, self.after_mlp, self.after_block = SublayerSlot(), SublayerSlot(), BlockSlot()

    def __call__(self, x, context: DecoderContext, key: Key):
        mixed, cache = self.attn(self.attn_norm(x), context, fold(key, 0))
        x = x + dropout(self.after_attn(mixed, fold(key, 4), residual=x), context.dropout_rate, fold(key, 1))
        transformed = self.after_mlp(self.mlp(self.mlp_norm(x), fold(key, 2)), fold(key, 5), residual=x)
        x = x + dropout(transformed, context.dropout_rate, fold(key, 3))
        return self.after_block(x, fold(key, 6), virtual=context.virtual), cache


class Gpt2(Decoder):
    """Maps token ids to hidden states."""

    def __init__(self, config: Gpt2Config):
        self.embed = Embedding(config.vocab_size, config.n_embd)
        self.position = Embedding(config.n_positions, config.n_embd)
        self.layers = stack_layers(lambda: Block(config), config.n_layer)
        self.virtual: Any = nnx.data(None)
        self.norm = LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon)
        self.config = config

    def embed_inputs(self, tokens, positions, dropout_rate, key: Key, dtype):
        """Adds the learned positions to the embeddings.

        Raises:
          UserError: a text has more tokens than there are positions, with those of a prefix or virtual tokens.
        """
        count = tokens.shape[1] + prefix_size(self.layers.attn.prefix)
        if count > self.config.n_positions:
            raise UserError(f"texts of {count} tokens: this GPT-2 has positions for {self.config.n_positions}")
        return dropout(self.embed(tokens, dtype) + self.position(positions, dtype), dropout_rate, key)

    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """Returns a cache of this model's shape with room for `capacity` tokens, and for virtual tokens.

        Raises:
          UserError: `capacity`, with a prefix or virtual tokens, is more than the learned positions.
        """
        count = capacity + prefix_size(self.layers.attn.prefix) + (0 if self.virtual is None else self.virtual.size)
        if count > self.config.n_positions:
            raise UserError(
                f"{count} tokens of prompt and answer are more than GPT-2's n_positions={self.config.n_positions}"
            )
        return super().empty_cache(batch, capacity, dtype)


# Checkpoint names to paths, as in models/bert.py. c_attn holds q, k and v side by side. Kernels are [d_in, d_out].
NAMES: dict[str, str | tuple[str, ...]] = {
    "wte.weight": "embed/embedding",
    "wpe.weight": "position/embedding",
    "h.{}.ln_1.weight": "layers/attn_norm/scale",
    "h.{}.ln_1.bias": "layers/attn_norm/bias",
    "h.{}.attn.c_attn.weight": ("layers/attn/q/kernel", "layers/attn/k/kernel", "layers/attn/v/kernel"),
    "h.{}.attn.c_attn.bias": ("layers/attn/q/bias", "layers/attn/k/bias", "layers/attn/v/bias"),
    "h.{}.attn.c_proj.weight": "layers/attn/o/kernel",
    "h.{}.attn.c_proj.bias": "layers/attn/o/bias",
    "h.{}.ln_2.weight": "layers/mlp_norm/scale",
    "h.{}.ln_2.bias": "layers/mlp_norm/bias",
    "h.{}.mlp.c_fc.weight": "layers/mlp/up/kernel",
    "h.{}.mlp.c_fc.bias": "layers/mlp/up/bias",
    "h.{}.mlp.c_proj.weight": "layers/mlp/down/kernel",
    "h.{}.mlp.c_proj.bias": "layers/mlp/down/bias",
    "ln_f.weight": "norm/scale",
    "ln_f.bias": "norm/bias",
}

PREFIXES = ("transformer.", "")
# The causal mask, stored as a constant, and heads of other tasks.
IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", r"(score|classifier)\..*", r"multiple_choice_head\..*")
FIXED = {
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
