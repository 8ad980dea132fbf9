"""GPT-2 (Radford et al., 2019): pre-norm blocks, learned positions, the embedding as the output layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.causality import Cache, causal_mask, empty_cache, positions_of
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, attention, dropout, fold, scan_layers, stack


@dataclasses.dataclass(frozen=True)
class Gpt2Config:
    """The part of ``config.json`` that shapes the computation; names and defaults are Hugging Face's."""

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int = 1024
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.activation_function != "gelu_new":
            raise ValueError(f"activation_function={self.activation_function!r}: this GPT-2 computes 'gelu_new' only")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of {self.n_head} heads")

    @property
    def hidden_size(self) -> int:
        return self.n_embd


class Attention(nnx.Module):
    def __init__(self, config: Gpt2Config):
        self.q, self.k, self.v, self.o = (Linear(config.n_embd, config.n_embd) for _ in range(4))
        self.heads = config.n_head

    def __call__(self, x, mask, rate, key: Key, layer, cache: Cache | None):
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (f(x, fold(key, i)).reshape(split) for i, f in enumerate((self.q, self.k, self.v)))
        if cache is not None:
            cache, k, v = cache.write(layer, k, v)
        mixed = attention(q, k, v, mask, rate=rate, key=fold(key, 3))
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

    def __call__(self, x, mask, rate, key: Key, layer, cache: Cache | None):
        mixed, cache = self.attn(self.attn_norm(x), mask, rate, fold(key, 0), layer, cache)
        x = x + dropout(mixed, rate, fold(key, 1))
        return x + dropout(self.mlp(self.mlp_norm(x), fold(key, 2)), rate, fold(key, 3)), cache


class Gpt2(nnx.Module):
    """Token ids to hidden states."""

    def __init__(self, config: Gpt2Config):
        self.embed = Embedding(config.vocab_size, config.n_embd)
        self.position = Embedding(config.n_positions, config.n_embd)
        self.layers = stack(lambda: Block(config), config.n_layer)
        self.norm = LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"],
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        dtype: DTypeLike = jnp.float32,
        unroll: int = 1,
        positions: Int[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> Any:
        """As models/llama.py's; with `key`, dropout at `rate` is on wherever GPT-2 has it.

        Raises ValueError for more tokens than the `n_positions` that it has learned.
        """
        if tokens.shape[1] > self.config.n_positions:
            raise ValueError(f"{tokens.shape[1]} tokens are more than GPT-2's n_positions={self.config.n_positions}")
        positions = positions_of(mask, segments, cache) if positions is None else positions
        cache = None if cache is None else cache.admit(mask)
        wide = causal_mask(mask, segments, cache)

        def apply(item, carry, key):
            block, layer = item
            x, cache = carry
            return block(x, wide, rate, key, layer, cache)

        x = dropout((self.embed(tokens) + self.position(positions)).astype(dtype), rate, fold(key, 0))
        items = (self.layers, jnp.arange(self.config.n_layer))
        x, cache = scan_layers(items, (x, cache), fold(key, 1), apply, unroll=unroll)
        hidden = self.norm(x)
        return hidden if cache is None else (hidden, cache)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache of this model's shape for `slots` tokens."""
        config = self.config
        return empty_cache(config.n_layer, batch, slots, config.n_head, config.n_embd // config.n_head, dtype)


# Checkpoint names to paths (see models/bert.py). c_attn is q, k and v side by side; kernels are stored [d_in, d_out].
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
IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", r"score\.weight", r"multiple_choice_head\..*")
FIXED = {
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
