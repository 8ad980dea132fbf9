"""ViT (Dosovitskiy et al., arXiv 2010.11929): an image's patches as tokens, pre-norm encoder blocks."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lora_jax.errors import UserError
from lora_jax.models.attention import DROPPING, View, uses_cudnn
from lora_jax.models.bert import Mlp
from lora_jax.models.layers import Key, LayerNorm, Linear, dropout, fold, scan_layers, stack


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The part of a checkpoint's ``config.json`` that shapes the computation; the names are Hugging Face's."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    num_channels: int
    layer_norm_eps: float
    hidden_act: str
    qkv_bias: bool = True

    def __post_init__(self):
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act={self.hidden_act!r}: this ViT computes 'gelu' (the exact one) only")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one number, for height and width")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return (self.image_size // self.patch_size) ** 2


class Attention(nnx.Module):
    def __init__(self, config: VitConfig):
        width = config.hidden_size
        self.q, self.k, self.v = (Linear(width, width, bias=config.qkv_bias) for _ in range(3))
        self.o = Linear(width, width)
        self.heads = config.num_attention_heads

    def __call__(self, x, view: View, key: Key):
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (f(x, fold(key, i)).reshape(split) for i, f in enumerate((self.q, self.k, self.v)))
        mixed = view.attend(q, k, v, fold(key, 3))
        return self.o(mixed.reshape(x.shape), fold(key, 4))


class Block(nnx.Module):
    def __init__(self, config: VitConfig):
        self.attn_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)

    def __call__(self, x, view: View, key: Key):
        x = x + dropout(self.attn(self.attn_norm(x), view, fold(key, 0)), view.rate, fold(key, 1))
        return x + dropout(self.mlp(self.mlp_norm(x), fold(key, 2)), view.rate, fold(key, 3))


class Learned(nnx.Module):
    """States that are the same for every image: the class token, the positions."""

    def __init__(self, count: int, width: int):
        self.embedding = nnx.Param(jnp.zeros((1, count, width)))  # as checkpoints have it


class Embeddings(nnx.Module):
    def __init__(self, config: VitConfig):
        self.patch = Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.first = Learned(1, config.hidden_size)
        self.position = Learned(1 + config.patches, config.hidden_size)

    def __call__(self, patches: Float[Array, "batch patches d_patch"], key: Key):
        x = self.patch(patches, key)
        first = jnp.broadcast_to(self.first.embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1) + self.position.embedding[...].astype(x.dtype)


class Vit(nnx.Module):
    """Pixels to hidden states: the class token's first, then a patch's each, row by row."""

    def __init__(self, config: VitConfig):
        self.embed = Embeddings(config)
        self.layers = stack(lambda: Block(config), config.num_hidden_layers)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.config = config

    def __call__(
        self,
        pixels: Float[Array, "batch height width channels"],
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        dtype: DTypeLike = jnp.float32,
        unroll: int | bool = 1,
        remat: str = "none",
        attention: str = "auto",
    ) -> Float[Array, "batch 1+patches width"]:
        """Hidden states after the last block and the final norm. `pixels` come from ``lora_jax.weights.preprocessing``.

        With `key`, dropout at `rate` is on, as in training. `unroll` and `remat` are `scan_layers`'s, `attention` is
        one of attention.IMPLEMENTATIONS. Raises UserError for images of another shape than the config's.
        """
        size, channels = self.config.image_size, self.config.num_channels
        if pixels.shape[1:] != (size, size, channels):
            raise UserError(f"images of {pixels.shape[1:]}: this ViT takes {(size, size, channels)}")
        patches = unfold(pixels.astype(dtype), self.config.patch_size)
        x = dropout(self.embed(patches, fold(key, 0)), rate, fold(key, 1))
        d_head = self.config.hidden_size // self.config.num_attention_heads
        cudnn = uses_cudnn(attention, dtype, d_head, {DROPPING: key is not None})
        view = View(None, rate, cudnn)

        def apply(block, x, key):
            return block(x, view, key)

        return self.norm(scan_layers(self.layers, x, fold(key, 2), apply, unroll=unroll, remat=remat))


def unfold(pixels: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch patches d_patch"]:
    """Square patches, row by row, each as one vector: its channels in turn, as a convolution's kernel has them."""
    batch, height, width, channels = pixels.shape
    x = pixels.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, channels * size * size)


# The tables are explained in bert.py. A convolution's kernel is flattened when it is loaded (weights/load.py).
NAMES = {
    "embeddings.patch_embeddings.projection.weight": "embed/patch/kernel",
    "embeddings.patch_embeddings.projection.bias": "embed/patch/bias",
    "embeddings.cls_token": "embed/first/embedding",
    "embeddings.position_embeddings": "embed/position/embedding",
    "encoder.layer.{}.layernorm_before.weight": "layers/attn_norm/scale",
    "encoder.layer.{}.layernorm_before.bias": "layers/attn_norm/bias",
    "encoder.layer.{}.attention.attention.query.weight": "layers/attn/q/kernel",
    "encoder.layer.{}.attention.attention.query.bias": "layers/attn/q/bias",
    "encoder.layer.{}.attention.attention.key.weight": "layers/attn/k/kernel",
    "encoder.layer.{}.attention.attention.key.bias": "layers/attn/k/bias",
    "encoder.layer.{}.attention.attention.value.weight": "layers/attn/v/kernel",
    "encoder.layer.{}.attention.attention.value.bias": "layers/attn/v/bias",
    "encoder.layer.{}.attention.output.dense.weight": "layers/attn/o/kernel",
    "encoder.layer.{}.attention.output.dense.bias": "layers/attn/o/bias",
    "encoder.layer.{}.layernorm_after.weight": "layers/mlp_norm/scale",
    "encoder.layer.{}.layernorm_after.bias": "layers/mlp_norm/bias",
    "encoder.layer.{}.intermediate.dense.weight": "layers/mlp/up/kernel",
    "encoder.layer.{}.intermediate.dense.bias": "layers/mlp/up/bias",
    "encoder.layer.{}.output.dense.weight": "layers/mlp/down/kernel",
    "encoder.layer.{}.output.dense.bias": "layers/mlp/down/bias",
    "layernorm.weight": "norm/scale",
    "layernorm.bias": "norm/bias",
}
# What a convolution's kernel is in a checkpoint, behind its outputs; here it is flat.
WINDOWS = {"embeddings.patch_embeddings.projection.weight": lambda c: (c.num_channels, c.patch_size, c.patch_size)}
PREFIXES = ("", "vit.")
IGNORED = (r"(vit\.)?pooler\..*", r"(vit\.)?embeddings\.mask_token", r"classifier\..*", r"decoder\..*")
