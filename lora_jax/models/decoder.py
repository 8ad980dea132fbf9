"""What the decoder families share: the way from tokens to hidden states, with or without a cache of earlier tokens."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import DROPPING, Front, View, uses_cudnn
from lora_jax.models.causality import Cache, causal_mask, empty_cache, positions_of
from lora_jax.models.layers import Key, fold, scan_layers
from lora_jax.models.rope import Rope, angles


class Kind(NamedTuple):
    """How a layer looks back: at the last `window` tokens or, if None, at all; at rotary positions if it has `rope`."""

    window: int | None = None
    rope: Rope | None = None


@dataclasses.dataclass(frozen=True)
class DecoderView(View):
    """What a decoder's block is told beside its input; a view of its own for every layer."""

    layer: Int[Array, ""] = dataclasses.field(kw_only=True)
    angle: Any = dataclasses.field(kw_only=True)  # [batch, tokens, half] of the layer's rope, None without one
    cache: Cache | None = dataclasses.field(kw_only=True)

    def attend_back(
        self, q: Array, k: Array, v: Array, key: Key, *, cap: float | None = None
    ) -> tuple[Float[Array, "batch tokens heads d_head"], Cache | None]:
        """`attend` to the cache and these tokens, or to these alone; and the cache with them."""
        cache = self.cache
        if cache is not None:
            cache, k, v = cache.write(self.layer, k, v)
        return self.attend(q, k, v, key, cap=cap), cache


class Decoder(nnx.Module):
    """Token ids to hidden states.

    A family makes the modules below. Its block is called as ``block(x, view, key)`` and returns x and the view's
    cache; its config has a `Kind` for each layer in `kinds`, `kv_heads`, `d_head`, and `cap` if it caps its scores.
    """

    embed: Any
    layers: Any
    norm: Any
    config: Any

    def embedded(
        self, tokens: Int[Array, "batch tokens"], positions: Int[Array, "batch tokens"], rate, key: Key, dtype
    ) -> Float[Array, "batch tokens width"]:
        """What the first layer is given, in `dtype`."""
        return self.embed(tokens, dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"],
        *,
        rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        dtype: DTypeLike = jnp.float32,
        unroll: int | bool = 1,
        remat: str = "none",
        attention: str = "auto",
        positions: Int[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> Any:
        """Hidden states after the final norm, ``[batch, tokens, width]``; with `cache`, those and the new cache.

        `mask` may pad on either side; tokens of one `segments` number see only each other. With `key`, dropout at
        `rate` is on wherever the family has it, as in training: on attention's probabilities in all of them. `unroll`
        and `remat` are `scan_layers`'s, `attention` is one of attention.IMPLEMENTATIONS; with a cache, XLA's is used.
        """
        kinds = tuple(dict.fromkeys(self.config.kinds))
        obstacles = {
            DROPPING: key is not None,
            "this model softly caps its scores": getattr(self.config, "cap", None) is not None,
            "this model's layers look back differently far": len({kind.window for kind in kinds}) > 1,
            "several sequences are packed into one": segments is not None,
        }
        # A few tokens against a cache are nothing to fuse: decoding is XLA's, whatever was asked for.
        asked = attention if cache is None else "xla"
        cudnn = uses_cudnn(asked, dtype, self.config.d_head, obstacles)
        front = Front.of(mask) if cudnn else Front()
        positions = positions_of(mask, segments, cache) if positions is None else positions
        x = self.embedded(tokens, positions, rate, fold(key, 0), dtype)
        cache = None if cache is None else cache.admit(mask)
        masks = [causal_mask(mask, segments, cache, window=kind.window) for kind in kinds]
        places = front.enter(positions)
        turns = [kind.rope and angles(places, kind.rope.frequencies(self.config.d_head)) for kind in kinds]

        def apply(item, carry, key):
            (block, layer, kind), (x, cache) = item, carry
            seen, angle = _pick(masks, kind), _pick(turns, kind)
            sight = (seen, rate, cudnn, front, True, kinds[0].window)
            return block(x, DecoderView(*sight, layer=layer, angle=angle, cache=cache), key)

        kind_of = np.array([kinds.index(kind) for kind in self.config.kinds], np.int32)
        items = (self.layers, jnp.arange(len(kind_of)), kind_of)
        x, cache = scan_layers(items, (front.enter(x), cache), fold(key, 1), apply, unroll=unroll, remat=remat)
        hidden = self.norm(front.leave(x))
        return hidden if cache is None else (hidden, cache)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache of this model's shape for `slots` tokens; layers with a window keep all of them too."""
        config = self.config
        return empty_cache(len(config.kinds), batch, slots, config.kv_heads, config.d_head, dtype)


def _pick(arrays: list, index: Int[Array, ""]):
    """The array of that index; where there is one only, no index is needed."""
    return arrays[0] if len(arrays) == 1 else jax.lax.select_n(index, *arrays)
