"""What the decoder families share: from token ids to hidden states, optionally with a key-value cache."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import UserError
from lora_jax.models.attention import (
    DROPOUT_OBSTACLE,
    PREFIX_OBSTACLE,
    AttentionContext,
    RightPadding,
    after_prefix,
    uses_cudnn,
)
from lora_jax.models.causality import Cache, causal_mask, empty_cache, token_positions
from lora_jax.models.layers import Key, fold, scan_layers
from lora_jax.models.options import ComputeOptions
from lora_jax.models.rope import Rope, angles
from lora_jax.models.virtual import Insertion


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

    A family creates the modules below, and an empty `virtual` slot. Its block is called as ``block(x, context, key)``
    and returns the new x and the context's cache. Its config has the properties `layer_specs` (a LayerSpec per layer),
    `kv_heads` and `d_head`, and `softcap` where attention's scores are capped.
    """

    embed: Any
    layers: Any
    norm: Any
    virtual: Any
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
        prompt_end: Int[Array, " batch"] | None = None,
        start: bool = True,
    ) -> Any:
        """Computes the hidden states after the final norm.

        Args:
          tokens: token ids.
          mask: False at padding, which may be on either side.
          dropout_rate: the dropout wherever the family has one: on attention's probabilities in all of them.
          key: the key of dropout. None turns it off.
          options: dtype, speed and memory. With a cache, XLA computes attention whatever `options.attention` says.
          positions: the position of each token in its text. By default, `token_positions` of the mask.
          segments: the number of the sequence that each token belongs to, where several are packed into a row.
            A token attends only to its own sequence.
          cache: earlier tokens, to attend to as well.
          prompt_end: the first column of each text after its prompt, where an infix of virtual tokens stands. By
            default, after the text's last token.
          start: whether the tokens begin their texts, so that virtual tokens are inserted. A cache gets them too.

        Returns:
          The hidden states ``[batch, seq, d_model]``. With a cache, those and the new cache.

        Raises:
          UserError: virtual tokens are inserted, and `positions` or `segments` are given, which have none for them.
        """
        virtual = self.virtual if start else None
        if virtual is not None and (positions is not None or segments is not None):
            raise UserError("virtual tokens cannot be inserted where positions or packed sequences are given")
        insertion = Insertion.of(virtual, mask, prompt_end, causal=True)
        tokens, mask = insertion.insert(tokens, self.config.vocab_size), insertion.mask
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
        positions = after_prefix(positions, self.layers.attn.prefix)
        x = self.embed_inputs(tokens, positions, dropout_rate, fold(key, 0), options.dtype)
        cache = None if cache is None else cache.reserve(mask)
        # A mask and angles for each different spec, not for each layer: the layers of a scan choose among them.
        masks = [causal_mask(mask, segments, cache, window=spec.window) for spec in specs]
        positions = padding.apply(positions)
        numbers = None if insertion.virtual is None else padding.apply(insertion.virtual)
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
                virtual=numbers,
                layer=layer,
                angle=_select(rotations, spec),
                cache=cache,
            )
            return block(x, context, key)

        spec_of_layer = np.array([specs.index(spec) for spec in self.config.layer_specs], np.int32)
        items = (self.layers, jnp.arange(len(spec_of_layer)), spec_of_layer)
        x, cache = scan_layers(items, (padding.apply(x), cache), fold(key, 1), apply, options)
        hidden = self.norm(insertion.extract(padding.undo(x)))
        return hidden if cache is None else (hidden, cache)

    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """Returns a cache of this model's shape with room for `capacity` tokens, and for virtual tokens.

        Layers with a window store all tokens too.
        """
        config = self.config
        capacity += 0 if self.virtual is None else self.virtual.size
        return empty_cache(len(config.layer_specs), batch, capacity, config.kv_heads, config.d_head, dtype)


def _select(arrays: list, index: Int[Array, ""]):
    """Returns ``arrays[index]`` for a traced index. A list of one needs no selection."""
    return arrays[0] if len(arrays) == 1 else jax.lax.select_n(index, *arrays)
