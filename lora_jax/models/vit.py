"""ViT (Dosovitskiy et al., arXiv 2010.11929): pre-norm encoder blocks on the patches of an image."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.errors import UserError
from lora_jax.models.attention import DROPOUT_OBSTACLE, PREFIX_OBSTACLE, AttentionContext, uses_cudnn
from lora_jax.models.bert import Mlp
from lora_jax.models.fields import Layers, Positive, Size
from lora_jax.models.layers import Key, LayerNorm, Linear, dropout, fold, scan_layers, stack_layers
from lora_jax.models.options import ComputeOptions
from lora_jax.models.slots import BlockSlot, SublayerSlot


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The keys of ``config.json`` that change the computation, under Hugging Face's names."""

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    image_size: Size  # height and width
    patch_size: Size  # height and width
    num_channels: Size
    layer_norm_eps: Positive
    hidden_act: str
    qkv_bias: bool = True

    def __post_init__(self):
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act={self.hidden_act!r}: this ViT computes the exact 'gelu' only")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads

    @property
    def d_head(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patches(self) -> int:
        """The number of patches in an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def states(self) -> int:
        """The number of hidden states of an image: the class token's and one for each patch."""
        return 1 + self.patches


class Attention(nnx.Module):
    def __init__(self, config: VitConfig):
        width = config.hidden_size
        self.q, self.k, self.v = (Linear(width, width, bias=config.qkv_bias) for _ in range(3))
        self.o = Linear(width, width)
        self.d_head = config.d_head
        self.prefix: Any = nnx.data(None)

    def __call__(self, x, context: AttentionContext, key: Key):
        by_head = (*x.shape[:-1], -1, self.d_head)
        q, k, v = (f(x, fold(key, i)).reshape(by_head) for i, f in enumerate((self.q, self.k, self.v)))
        mixed = context.attend(q, k, v, fold(key, 3), prefix=self.prefix)
        return self.o(mixed.reshape(x.shape), fold(key, 4))


class Block(nnx.Module):
    def __init__(self, config: VitConfig):
        self.attn_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)
        self.after_attn, self.after_mlp, self.after_block = SublayerSlot(), SublayerSlot(), BlockSlot()

    def __call__(self, x, context: AttentionContext, key: Key):
        mixed = self.after_attn(self.attn(self.attn_norm(x), context, fold(key, 0)), fold(key, 4), residual=x)
        x = x + dropout(mixed, context.dropout_rate, fold(key, 1))
        transformed = self.after_mlp(self.mlp(self.mlp_norm(x), fold(key, 2)), fold(key, 5), residual=x)
        x = x + dropout(transformed, context.dropout_rate, fold(key, 3))
        return self.after_block(x, fold(key, 6), virtual=context.virtual)


class LearnedStates(nnx.Module):
    """Learned vectors that are the same for every image: the class token, the positions."""

    def __init__(self, count: int, d_model: int):
        self.embedding = nnx.Param(jnp.zeros((1, count, d_model)))  # with the leading 1 of checkpoints


class Embeddings(nnx.Module):
    def __init__(self, config: VitConfig):
        self.patch = Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.first = LearnedStates(1, config.hidden_size)
        self.position = LearnedStates(1 + config.patches, config.hidden_size)

    def __call__(self, patches: Float[Array, "batch patches d_patch"], key: Key):
        x = self.patch(patches, key)
        first = jnp.broadcast_to(self.first.embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1) + self.position.embedding[...].astype(x.dtype)


class Vit(nnx.Module):
    """Maps pixels to hidden states: the class token's, then those of the patches, row by row."""

    def __init__(self, config: VitConfig):
        self.embed = Embeddings(config)
        self.layers = stack_layers(lambda: Block(config), config.num_hidden_layers)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.config = config

    def __call__(
        self,
        pixels: Float[Array, "batch height width channels"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
    ) -> Float[Array, "batch 1+patches d_model"]:
        """Computes the hidden states after the last block and the final norm.

        Args:
          pixels: images, as ``lora_jax.weights.preprocessing`` prepares them.
          dropout_rate: the dropout on embeddings, attention's probabilities, and the outputs of attention and MLP.
          key: the key of dropout. None turns it off.
          options: dtype, speed and memory.

        Raises:
          UserError: the images do not have the config's shape.
        """
        size, channels = self.config.image_size, self.config.num_channels
        if pixels.shape[1:] != (size, size, channels):
            raise UserError(f"images of shape {pixels.shape[1:]}: this ViT takes {(size, size, channels)}")
        patches = patchify(pixels.astype(options.dtype), self.config.patch_size)
        x = dropout(self.embed(patches, fold(key, 0)), dropout_rate, fold(key, 1))
        obstacles = {DROPOUT_OBSTACLE: key is not None, PREFIX_OBSTACLE: self.layers.attn.prefix is not None}
        cudnn = uses_cudnn(options.attention, options.dtype, self.config.d_head, obstacles)
        context = AttentionContext(None, dropout_rate, cudnn)

        def apply(block, x, key):
            return block(x, context, key)

        return self.norm(scan_layers(self.layers, x, fold(key, 2), apply, options))


def patchify(pixels: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch patches d_patch"]:
    """Cuts images into square patches, row by row, each flattened channels first, like a convolution's kernel."""
    batch, height, width, channels = pixels.shape
    x = pixels.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, channels * size * size)


# bert.py explains these tables. Loading (weights/load.py) flattens a convolution's kernel.
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
# The shape of a convolution's kernel in a checkpoint, after its outputs. Here it is flat.
WINDOWS = {"embeddings.patch_embeddings.projection.weight": lambda c: (c.num_channels, c.patch_size, c.patch_size)}
PREFIXES = ("", "vit.")
IGNORED = (r"(vit\.)?pooler\..*", r"(vit\.)?embeddings\.mask_token", r"classifier\..*", r"decoder\..*")
