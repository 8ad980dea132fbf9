"""What the decoder families share: from token ids to hidden states, optionally with a key-value cache."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import DROPOUT_OBSTACLE, PREFIX_OBSTACLE, AttentionContext, RightPadding, uses_cudnn
from lora_jax.models.causality import Cache, causal_mask, empty_cache, token_positions
from lora_jax.models.layers import Key, fold, scan_layers
from lora_jax.models.options import ComputeOptions
from lora_jax.models.rope import Rope, angles


class LayerSpec(NamedTuple):
    """How one layer attends.

    Attributes:
      window: how many tokens a token attends to, itself included. None means all earlier ones.
      rope: the rotary position embedding, or None for a layer without one.
    """

    window: int | None = None
    rope: Rope | None = None


@dataclasses.dataclass(frozen=True)
class DecoderContext(AttentionContext):
    """What a decoder's block receives beside its input. Each layer has a context of its own.

    Attributes:
      layer: the layer's number.
      angle: the rotation angles of the layer's rope, ``[batch, seq, half]``, or None without a rope.
      cache: the key-value cache, with room reserved for these tokens, or None.
    """

    layer: Int[Array, ""] = dataclasses.field(kw_only=True)
    angle: Any = dataclasses.field(kw_only=True)
    cache: Cache | None = dataclasses.field(kw_only=True)

    def attend_with_cache(
        self,
        q: Float[Array, "batch seq heads d_head"],
        k: Float[Array, "batch seq kv_heads d_head"],
        v: Float[Array, "batch seq kv_heads d_head"],
        key: Key,
        *,
        softcap: float | None = None,
        prefix: Any = None,
    ) -> tuple[Float[Array, "batch seq heads d_head"], Cache | None]:
        """Attends to these tokens and, with a cache, to those in it.

        A `prefix` stands before the keys while attention is computed. It is never written to the cache.

        Returns:
          Attention's output, and the cache with these tokens in it (None without one).
        """
        cache = self.cache
        if cache is not None:
            cache, k, v = cache.write(self.layer, k, v)
        return self.attend(q, k, v, key, softcap=softcap, prefix=prefix), cache


class Decoder(nnx.Module):
    """Maps token ids to hidden states, optionally with a key-value cache.

    A family creates the modules below. Its block is called as ``block(x, context, key)`` and returns the new x and
    the context's cache. Its config has the properties `layer_specs` (a LayerSpec per layer), `kv_heads` and `d_head`,
    and `softcap` where attention's scores are capped.
    """

    embed: Any
    layers: Any
    norm: Any
    config: Any

    def embed_inputs(
        self, tokens: Int[Array, "batch seq"], positions: Int[Array, "batch seq"], dropout_rate, key: Key, dtype
    ) -> Float[Array, "batch seq d_model"]:
        """Returns the first layer's input, in `dtype`."""
        return self.embed(tokens, dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        cache: Cache | None = None,
    ) -> Any:
        """Computes the hidden states after the final norm.

        Args:
          tokens: token ids.
          mask: False at padding, which may be on either side.
          dropout_rate: the dropout wherever the family has one: on attention's probabilities in all of them.
          key: the key of dropout. None turns it off.
          options: dtype, speed and memory. With a cache, XLA computes attention whatever `options.attention` says.
          positions: the position of each token. By default, `token_positions` of the mask.
          segments: the number of the sequence that each token belongs to, where several are packed into a row.
            A token attends only to its own sequence.
          cache: earlier tokens, to attend to as well.

        Returns:
          The hidden states ``[batch, seq, d_model]``. With a cache, those and the new cache.
        """
        specs = tuple(dict.fromkeys(self.config.layer_specs))
        obstacles = {
            DROPOUT_OBSTACLE: key is not None,
            PREFIX_OBSTACLE: self.layers.attn.prefix is not None,
            "this model caps its scores": getattr(self.config, "softcap", None) is not None,
            "this model's layers have different windows": len({spec.window for spec in specs}) > 1,
            "several sequences are packed into one": segments is not None,
        }
        # Decoding attends from a few tokens to a cache, where a fused kernel gains nothing.
        implementation = options.attention if cache is None else "xla"
        cudnn = uses_cudnn(implementation, options.dtype, self.config.d_head, obstacles)
        padding = RightPadding.from_mask(mask) if cudnn else RightPadding()
        positions = token_positions(mask, segments, cache) if positions is None else positions
        x = self.embed_inputs(tokens, positions, dropout_rate, fold(key, 0), options.dtype)
        cache = None if cache is None else cache.reserve(mask)
        # A mask and angles for each different spec, not for each layer: the layers of a scan choose among them.
        masks = [causal_mask(mask, segments, cache, window=spec.window) for spec in specs]
        positions = padding.apply(positions)
        rotations = [spec.rope and angles(positions, spec.rope.frequencies(self.config.d_head)) for spec in specs]

        def apply(item, carry, key):
            (block, layer, spec), (x, cache) = item, carry
            context = DecoderContext(
                mask=_select(masks, spec),
                dropout_rate=dropout_rate,
                cudnn=cudnn,
                padding=padding,
                causal=True,
                window=specs[0].window,  # read with cuDNN alone, for which all layers have one window
                layer=layer,
                angle=_select(rotations, spec),
                cache=cache,
            )
            return block(x, context, key)

        spec_of_layer = np.array([specs.index(spec) for spec in self.config.layer_specs], np.int32)
        items = (self.layers, jnp.arange(len(spec_of_layer)), spec_of_layer)
        x, cache = scan_layers(items, (padding.apply(x), cache), fold(key, 1), apply, options)
        hidden = self.norm(padding.undo(x))
        return hidden if cache is None else (hidden, cache)

    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """Returns a cache of this model's shape with room for `capacity` tokens.

        Layers with a window store all tokens too.
        """
        config = self.config
        return empty_cache(len(config.layer_specs), batch, capacity, config.kv_heads, config.d_head, dtype)


def _select(arrays: list, index: Int[Array, ""]):
    """Returns ``arrays[index]`` for a traced index. A list of one needs no selection."""
    return arrays[0] if len(arrays) == 1 else jax.lax.select_n(index, *arrays)
