"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and models of the same design: SmolLM2, Qwen2, Qwen3.

Pre-norm blocks, rotary positions, grouped-query attention, a gated MLP. Qwen2 (arXiv 2407.10671) has biases on q, k
and v. Qwen3 (arXiv 2505.09388) normalises q and k in each head.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from lora_jax.models.decoder import Decoder, DecoderContext, LayerSpec
from lora_jax.models.fields import Layers, Positive, Size
from lora_jax.models.layers import Embedding, Key, Linear, RMSNorm, apply_together, fold, stack_layers
from lora_jax.models.rope import Rope, read_rope, rotate
from lora_jax.models.slots import BlockSlot, SublayerSlot


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The keys of ``config.json`` that change the computation, with Hugging Face's names and defaults.

    After construction `num_key_value_heads` and `head_dim` are numbers and `rope_parameters` is a Rope, whichever keys
    the file has for them.
    """

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    model_type: str = "llama"
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Positive = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope_theta: Positive = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | Rope | None = None

    def __post_init__(self):
        kv_heads = self.num_key_value_heads or self.num_attention_heads
        # Qwen3's config class, unlike the others, does not derive head_dim.
        head_dim = self.head_dim or (
            128 if self.model_type == "qwen3" else self.hidden_size // self.num_attention_heads
        )
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act={self.hidden_act!r}: this family computes 'silu' only")
        if self.num_attention_heads % kv_heads:
            raise ValueError(f"{self.num_attention_heads} attention heads are not a multiple of {kv_heads} for k and v")
        if not self.head_dim and self.model_type != "qwen3" and self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        rope = read_rope(self.rope_theta, self.rope_parameters or self.rope_scaling)
        rope.check(head_dim)
        for name, value in {
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "rope_parameters": rope,
            "rope_theta": rope.rope_theta,
            "rope_scaling": None,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def rope(self) -> Rope:
        assert isinstance(self.rope_parameters, Rope)
        return self.rope_parameters

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        return (LayerSpec(rope=self.rope),) * self.num_hidden_layers

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def d_head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Attention(nnx.Module):
    def __init__(self, config: LlamaConfig):
        width, heads, kv_heads, d_head = config.hidden_size, config.num_attention_heads, config.kv_heads, config.d_head
        bias = config.attention_bias or config.model_type == "qwen2"
        self.q = Linear(width, heads * d_head, bias=bias)
        self.k, self.v = (Linear(width, kv_heads * d_head, bias=bias) for _ in range(2))
        self.o = Linear(heads * d_head, width, bias=config.attention_bias)
        normed = config.model_type == "qwen3"
        self.q_norm = RMSNorm(d_head, epsilon=config.rms_norm_eps) if normed else nnx.data(None)
        self.k_norm = RMSNorm(d_head, epsilon=config.rms_norm_eps) if normed else nnx.data(None)
        self.d_head = d_head
        self.prefix: Any = nnx.data(None)

    def __call__(self, x, context: DecoderContext, key: Key):
        together = apply_together((self.q, self.k, self.v), x, [fold(key, i) for i in range(3)])
        q, k, v = (y.reshape(*x.shape[:-1], -1, self.d_head) for y in together)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, context.angle), rotate(k, context.angle)
        mixed, cache = context.attend_with_cache(q, k, v, fold(key, 3), prefix=self.prefix)
        return self.o(mixed.reshape(*x.shape[:-1], -1), fold(key, 4)), cache


class Mlp(nnx.Module):
    def __init__(self, config: LlamaConfig):
        self.gate = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def __call__(self, x, key: Key):
        gate, up = apply_together((self.gate, self.up), x, [fold(key, 0), fold(key, 1)])
        return self.down(jax.nn.silu(gate) * up, fold(key, 2))


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig):
        self.attn_norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        self.mlp = Mlp(config)
        self.after_attn, self.after_mlp, self.after_block = SublayerSlot(), SublayerSlot(), BlockSlot()

    def __call__(self, x, context: DecoderContext, key: Key):
        mixed, cache = self.attn(self.attn_norm(x), context, fold(key, 0))
        x = x + self.after_attn(mixed, fold(key, 4), residual=x)
        x = x + self.after_mlp(self.mlp(self.mlp_norm(x), fold(key, 1)), fold(key, 5), residual=x)
        return self.after_block(x, fold(key, 6), virtual=context.virtual), cache


class Llama(Decoder):
    """Maps token ids to hidden states. Dropout is on attention's probabilities alone."""

    def __init__(self, config: LlamaConfig):
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = stack_layers(lambda: Block(config), config.num_hidden_layers)
        self.virtual: Any = nnx.data(None)
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        self.config = config


# Checkpoint names to paths, as in models/bert.py. Biases and the norms of q and k are there only in some models.
NAMES = {
    "embed_tokens.weight": "embed/embedding",
    "norm.weight": "norm/scale",
    "layers.{}.input_layernorm.weight": "layers/attn_norm/scale",
    "layers.{}.post_attention_layernorm.weight": "layers/mlp_norm/scale",
    "layers.{}.self_attn.q_norm.weight": "layers/attn/q_norm/scale",
    "layers.{}.self_attn.k_norm.weight": "layers/attn/k_norm/scale",
    **{
        f"layers.{{}}.{theirs}_proj.{kind}": f"layers/{ours}/{'kernel' if kind == 'weight' else 'bias'}"
        for theirs, ours in {
            "self_attn.q": "attn/q",
            "self_attn.k": "attn/k",
            "self_attn.v": "attn/v",
            "self_attn.o": "attn/o",
            "mlp.gate": "mlp/gate",
            "mlp.up": "mlp/up",
            "mlp.down": "mlp/down",
        }.items()
        for kind in ("weight", "bias")
    },
}

PREFIXES = ("model.", "")
# `score` is a classifier's head. Older checkpoints store the rotary frequencies.
IGNORED = (r"score\..*", r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
FIXED = {"use_sliding_window": False}
