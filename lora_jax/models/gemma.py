"""Gemma 1, 2 and 3 (arXiv 2403.08295, 2408.00118, 2503.19786).

The differences from models/llama.py: embeddings are scaled by the square root of their width, norms store their scale
minus one, and the MLP's gate is a GELU. Gemma 2 and 3 also normalise the outputs of attention and MLP, and most of
their layers attend to a sliding window. Gemma 2 caps attention's scores and the logits. Gemma 3 normalises q and k in
each head, and its sliding layers have a rope of higher frequencies.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lora_jax.errors import shown
from lora_jax.models.decoder import Decoder, DecoderContext, LayerSpec
from lora_jax.models.fields import Layers, Positive, Size
from lora_jax.models.layers import Embedding, Key, Linear, RMSNorm, apply_together, fold, stack_layers
from lora_jax.models.rope import Rope, read_rope, rotate
from lora_jax.models.slots import BlockSlot, SublayerSlot

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Gemma 1: the keys of ``config.json`` that change the computation, with Hugging Face's names and defaults."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size = 256
    rms_norm_eps: Positive = 1e-6
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    rope_theta: Positive = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | None = None

    def __post_init__(self):
        # Gemma 1's first configs have hidden_act="gelu", which means the approximation too.
        activation = self.hidden_activation or self.hidden_act or "gelu"
        if activation not in ("gelu_pytorch_tanh", "gelu"):
            raise ValueError(f"hidden_activation={activation!r}: this family computes 'gelu_pytorch_tanh' only")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads are not a multiple of {self.num_key_value_heads} for k, v"
            )
        # A module's static attributes must be hashable, so no dict may stay.
        ropes = self._ropes()
        for rope in ropes.values():
            rope.check(self.head_dim)
        for name, value in {"rope_parameters": tuple(ropes.items()), "rope_scaling": None}.items():
            object.__setattr__(self, name, value)

    def _ropes(self) -> dict[str, Rope]:
        if isinstance(self.rope_parameters, tuple):
            return dict(self.rope_parameters)
        rope = read_rope(self.rope_theta, self.rope_parameters or self.rope_scaling)
        return {FULL: rope, SLIDING: rope}

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        return (LayerSpec(rope=self._ropes()[FULL]),) * self.num_hidden_layers

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads

    @property
    def d_head(self) -> int:
        return self.head_dim

    @property
    def score_divisor(self) -> float:
        """The number by whose square root attention's scores are divided."""
        return self.head_dim

    @property
    def softcap(self) -> float | None:
        """The soft cap of attention's scores, or None."""
        return None


@dataclasses.dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    sliding_window: Size | None = 4096
    layer_types: Sequence[str] | None = None
    query_pre_attn_scalar: Positive = 256
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    sliding_window_pattern: Size = 2  # every n-th layer attends to all tokens; newer configs have `layer_types`

    def __post_init__(self):
        super().__post_init__()
        period = self.sliding_window_pattern
        types = self.layer_types or [SLIDING if (i + 1) % period else FULL for i in range(self.num_hidden_layers)]
        if len(types) != self.num_hidden_layers or set(types) - {FULL, SLIDING}:
            raise ValueError(f"layer_types={shown(list(types))}: must be {FULL} or {SLIDING} for each of the layers")
        object.__setattr__(self, "layer_types", tuple(types))

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        windows = {FULL: None, SLIDING: self.sliding_window}
        specs = {name: LayerSpec(windows[name], rope) for name, rope in self._ropes().items()}
        return tuple(specs[name] for name in self.layer_types or ())

    @property
    def score_divisor(self) -> float:
        return self.query_pre_attn_scalar

    @property
    def softcap(self) -> float | None:
        return self.attn_logit_softcapping


@dataclasses.dataclass(frozen=True)
class Gemma3Config(Gemma2Config):
    rope_theta: Positive = 1_000_000.0
    rope_local_base_freq: Positive = 10000.0
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    sliding_window_pattern: Size = 6

    @property
    def softcap(self) -> float | None:
        return None  # transformers reads Gemma 3's cap, but does not apply it either

    def _ropes(self) -> dict[str, Rope]:
        if isinstance(self.rope_parameters, tuple):
            return dict(self.rope_parameters)
        values = self.rope_parameters or {FULL: self.rope_scaling}
        return {
            FULL: read_rope(self.rope_theta, values.get(FULL)),
            SLIDING: read_rope(self.rope_local_base_freq, values.get(SLIDING)),
        }


class Attention(nnx.Module):
    def __init__(self, config: GemmaConfig):
        width, d_head, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q = Linear(width, config.num_attention_heads * d_head, bias=bias)
        self.k, self.v = (Linear(width, config.num_key_value_heads * d_head, bias=bias) for _ in range(2))
        self.o = Linear(config.num_attention_heads * d_head, width, bias=bias)
        normed = isinstance(config, Gemma3Config)
        self.q_norm = RMSNorm(d_head, epsilon=config.rms_norm_eps, offset=1.0) if normed else nnx.data(None)
        self.k_norm = RMSNorm(d_head, epsilon=config.rms_norm_eps, offset=1.0) if normed else nnx.data(None)
        self.d_head = d_head
        self.scale = (d_head / config.score_divisor) ** 0.5  # on top of attention's own 1/√d_head
        self.softcap = config.softcap
        self.prefix: Any = nnx.data(None)

    def __call__(self, x, context: DecoderContext, key: Key):
        together = apply_together((self.q, self.k, self.v), x, [fold(key, i) for i in range(3)])
        q, k, v = (y.reshape(*x.shape[:-1], -1, self.d_head) for y in together)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, context.angle), rotate(k, context.angle)
        mixed, cache = context.attend_with_cache(
            q * self.scale, k, v, fold(key, 3), softcap=self.softcap, prefix=self.prefix
        )
        return self.o(mixed.reshape(*x.shape[:-1], -1), fold(key, 4)), cache


class Mlp(nnx.Module):
    def __init__(self, config: GemmaConfig):
        self.gate = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x, key: Key):
        gate, up = apply_together((self.gate, self.up), x, [fold(key, 0), fold(key, 1)])
        return self.down(jax.nn.gelu(gate, approximate=True) * up, fold(key, 2))


class Block(nnx.Module):
    def __init__(self, config: GemmaConfig):
        def norm():
            return RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, offset=1.0)

        post_norms = isinstance(config, Gemma2Config)
        self.attn_norm = norm()
        self.attn = Attention(config)
        self.attn_post_norm = norm() if post_norms else nnx.data(None)
        self.mlp_norm = norm()
        self.mlp = Mlp(config)
        self.mlp_post_norm = norm() if post_norms else nnx.data(None)
        self.after_attn, self.after_mlp, self.after_block = SublayerSlot(), SublayerSlot(), BlockSlot()

    def __call__(self, x, context: DecoderContext, key: Key):
        mixed, cache = self.attn(self.attn_norm(x), context, fold(key, 0))
        mixed = self.after_attn(mixed, fold(key, 4), residual=x)
        x = x + (mixed if self.attn_post_norm is None else self.attn_post_norm(mixed))
        transformed = self.after_mlp(self.mlp(self.mlp_norm(x), fold(key, 1)), fold(key, 5), residual=x)
        x = x + (transformed if self.mlp_post_norm is None else self.mlp_post_norm(transformed))
        return self.after_block(x, fold(key, 6), virtual=context.virtual), cache


class Gemma(Decoder):
    """Maps token ids to hidden states. Dropout is on attention's probabilities alone."""

    def __init__(self, config: GemmaConfig):
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = stack_layers(lambda: Block(config), config.num_hidden_layers)
        self.virtual: Any = nnx.data(None)
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, offset=1.0)
        self.config = config

    def embed_inputs(self, tokens, positions, dropout_rate, key: Key, dtype):
        return self.embed(tokens, dtype) * jnp.asarray(self.config.hidden_size**0.5, dtype)


_SHARED = {
    "embed_tokens.weight": "embed/embedding",
    "norm.weight": "norm/scale",
    "layers.{}.input_layernorm.weight": "layers/attn_norm/scale",
    "layers.{}.self_attn.q_norm.weight": "layers/attn/q_norm/scale",
    "layers.{}.self_attn.k_norm.weight": "layers/attn/k_norm/scale",
    "layers.{}.mlp.gate_proj.weight": "layers/mlp/gate/kernel",
    "layers.{}.mlp.up_proj.weight": "layers/mlp/up/kernel",
    "layers.{}.mlp.down_proj.weight": "layers/mlp/down/kernel",
    **{f"layers.{{}}.self_attn.{x}_proj.weight": f"layers/attn/{x}/kernel" for x in "qkvo"},
    **{f"layers.{{}}.self_attn.{x}_proj.bias": f"layers/attn/{x}/bias" for x in "qkvo"},
}
# Checkpoint names to paths, as in models/bert.py: Gemma 1's, and its successors', which moved one name.
NAMES = {**_SHARED, "layers.{}.post_attention_layernorm.weight": "layers/mlp_norm/scale"}
NAMES2 = {
    **_SHARED,
    "layers.{}.post_attention_layernorm.weight": "layers/attn_post_norm/scale",
    "layers.{}.pre_feedforward_layernorm.weight": "layers/mlp_norm/scale",
    "layers.{}.post_feedforward_layernorm.weight": "layers/mlp_post_norm/scale",
}

PREFIXES = ("model.", "")
IGNORED = (r"score\..*",)

# What config.json may leave out but not contradict.
FIXED = {"use_bidirectional_attention": False}
