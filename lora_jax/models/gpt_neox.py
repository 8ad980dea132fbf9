"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention and MLP in parallel, from the same input.

Unlike GPT-2, it has rotary positions on a part of each head's dimensions, and an output layer of its own.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from lora_jax.models.decoder import Decoder, DecoderContext, LayerSpec
from lora_jax.models.fields import Layers, Positive, Share, Size
from lora_jax.models.layers import Embedding, Key, LayerNorm, Linear, dropout, fold, gelu, stack_layers
from lora_jax.models.rope import Rope, read_rope, rotate
from lora_jax.models.slots import BlockSlot, SublayerSlot

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class GptNeoxConfig:
    """The keys of ``config.json`` that change the computation, with Hugging Face's names and defaults.

    After construction `rope_parameters` is a Rope that holds all rotary settings, whichever keys the file has for them.
    """

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    hidden_act: str = "gelu"
    layer_norm_eps: Positive = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    rotary_pct: Share = 0.25
    rotary_emb_base: Positive = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | Rope | None = None

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r}: this family computes {' and '.join(ACTIVATIONS)} only")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        rope = self.rope_parameters or self.rope_scaling or {}
        if not isinstance(rope, Rope):
            rope = read_rope(self.rotary_emb_base, {"partial_rotary_factor": self.rotary_pct, **rope})
        if (rotated := rope.rotated_dims(self.d_head)) % 2:
            part = f"rotary_pct={rope.partial_rotary_factor} of heads of width {self.d_head}"
            raise ValueError(f"{part} is {rotated} dimensions: rotary embeddings rotate pairs, so it must be even")
        rope.check(self.d_head)
        object.__setattr__(self, "rope_parameters", rope)
        object.__setattr__(self, "rope_scaling", None)

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        assert isinstance(self.rope_parameters, Rope)
        return (LayerSpec(rope=self.rope_parameters),) * self.num_hidden_layers

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads

    @property
    def d_head(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Attention(nnx.Module):
    def __init__(self, config: GptNeoxConfig):
        width, bias = config.hidden_size, config.attention_bias
        self.q, self.k, self.v, self.o = (Linear(width, width, bias=bias) for _ in range(4))
        self.d_head = config.d_head
        self.prefix: Any = nnx.data(None)

    def __call__(self, x, context: DecoderContext, key: Key):
        by_head = (*x.shape[:-1], -1, self.d_head)
        q, k, v = (f(x, fold(key, i)).reshape(by_head) for i, f in enumerate((self.q, self.k, self.v)))
        q, k = rotate(q, context.angle), rotate(k, context.angle)
        mixed, cache = context.attend_with_cache(q, k, v, fold(key, 3), prefix=self.prefix)
        return self.o(mixed.reshape(x.shape), fold(key, 4)), cache


class Mlp(nnx.Module):
    def __init__(self, config: GptNeoxConfig):
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)
        self.activation = config.hidden_act

    def __call__(self, x, key: Key):
        return self.down(ACTIVATIONS[self.activation](self.up(x, fold(key, 0))), fold(key, 1))


class Block(nnx.Module):
    def __init__(self, config: GptNeoxConfig):
        self.attn_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.after_attn, self.after_mlp, self.after_block = SublayerSlot(), SublayerSlot(), BlockSlot()
        self.parallel = config.use_parallel_residual

    def __call__(self, x, context: DecoderContext, key: Key):
        mixed, cache = self.attn(self.attn_norm(x), context, fold(key, 0))
        attended = x + dropout(self.after_attn(mixed, fold(key, 4), residual=x), context.dropout_rate, fold(key, 1))
        transformed = self.mlp(self.mlp_norm(x if self.parallel else attended), fold(key, 2))
        transformed = self.after_mlp(transformed, fold(key, 5), residual=attended)
        x = attended + dropout(transformed, context.dropout_rate, fold(key, 3))
        return self.after_block(x, fold(key, 6), virtual=context.virtual), cache


class GptNeox(Decoder):
    """Maps token ids to hidden states."""

    def __init__(self, config: GptNeoxConfig):
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = stack_layers(lambda: Block(config), config.num_hidden_layers)
        self.virtual: Any = nnx.data(None)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.config = config

    def embed_inputs(self, tokens, positions, dropout_rate, key: Key, dtype):
        return dropout(self.embed(tokens, dtype), dropout_rate, key)


# Checkpoint names to paths, as in models/bert.py. query_key_value holds q, k and v of one head after the other.
NAMES: dict[str, str | tuple[str, ...]] = {
    "embed_in.weight": "embed/embedding",
    "layers.{}.input_layernorm.weight": "layers/attn_norm/scale",
    "layers.{}.input_layernorm.bias": "layers/attn_norm/bias",
    "layers.{}.attention.query_key_value.weight": tuple(f"layers/attn/{name}/kernel" for name in "qkv"),
    "layers.{}.attention.query_key_value.bias": tuple(f"layers/attn/{name}/bias" for name in "qkv"),
    "layers.{}.attention.dense.weight": "layers/attn/o/kernel",
    "layers.{}.attention.dense.bias": "layers/attn/o/bias",
    "layers.{}.post_attention_layernorm.weight": "layers/mlp_norm/scale",
    "layers.{}.post_attention_layernorm.bias": "layers/mlp_norm/bias",
    "layers.{}.mlp.dense_h_to_4h.weight": "layers/mlp/up/kernel",
    "layers.{}.mlp.dense_h_to_4h.bias": "layers/mlp/up/bias",
    "layers.{}.mlp.dense_4h_to_h.weight": "layers/mlp/down/kernel",
    "layers.{}.mlp.dense_4h_to_h.bias": "layers/mlp/down/bias",
    "final_layer_norm.weight": "norm/scale",
    "final_layer_norm.bias": "norm/bias",
}

PREFIXES = ("gpt_neox.", "")
# The causal mask and the rotary frequencies, stored as constants, and heads of other tasks.
IGNORED = (r"(gpt_neox\.)?layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)", r"(score|classifier)\..*")
