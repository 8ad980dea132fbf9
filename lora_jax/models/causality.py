"""What a decoder's token may see: positions, causal masks, and the cache of earlier tokens' keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


class Cache(NamedTuple):
    """Keys and values of the tokens so far. A slot whose mask is False holds padding, or nothing yet."""

    k: Float[Array, "layers batch slots kv_heads d_head"]
    v: Float[Array, "layers batch slots kv_heads d_head"]
    mask: Bool[Array, "batch slots"]
    length: Int[Array, ""]  # slots taken

    def admit(self, mask: Bool[Array, "batch tokens"]) -> "Cache":
        """With the next slots taken by tokens of which `mask` says whether they are real.

        More tokens than free slots is the caller's mistake: `length` is traced, so it cannot be seen here.
        """
        taken = jax.lax.dynamic_update_slice(self.mask, mask, (0, self.length))
        return self._replace(mask=taken, length=self.length + mask.shape[1])

    def write(
        self, layer: Int[Array, ""], k: Float[Array, "batch tokens kv_heads d"], v: Float[Array, "batch tokens kv d"]
    ) -> tuple["Cache", Float[Array, "batch slots kv_heads d"], Float[Array, "batch slots kv_heads d"]]:
        """The last admitted tokens' `k` and `v` in their slots; then all keys and values of `layer`."""
        start = (layer, 0, self.length - k.shape[1], 0, 0)
        keys = jax.lax.dynamic_update_slice(self.k, k[None].astype(self.k.dtype), start)
        values = jax.lax.dynamic_update_slice(self.v, v[None].astype(self.v.dtype), start)
        return self._replace(k=keys, v=values), keys[layer].astype(k.dtype), values[layer].astype(v.dtype)

    def repeat(self, times: int) -> "Cache":
        """With every row of the batch `times` times, one after another."""
        k, v = (jnp.repeat(x, times, axis=1) for x in (self.k, self.v))
        return self._replace(k=k, v=v, mask=jnp.repeat(self.mask, times, axis=0))

    def reorder(self, rows: Int[Array, " batch"], *, start: int = 0) -> "Cache":
        """Row i goes on from what row ``rows[i]`` holds in the slots from `start` on.

        Earlier slots stay: in a beam search the two rows hold the same prompt there.
        """
        k, v = (x.at[:, :, start:].set(x[:, rows, start:]) for x in (self.k, self.v))
        return self._replace(k=k, v=v, mask=self.mask.at[:, start:].set(self.mask[rows, start:]))


def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, d_head: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """A cache for `slots` tokens, none taken."""
    zeros = jnp.zeros((layers, batch, slots, kv_heads, d_head), dtype)
    return Cache(zeros, zeros, jnp.zeros((batch, slots), bool), jnp.int32(0))


def positions_of(
    mask: Bool[Array, "batch tokens"], segments: Int[Array, "batch tokens"] | None = None, cache: Cache | None = None
) -> Int[Array, "batch tokens"]:
    """Each token's place among the unmasked ones: of its segment, and after those in `cache` (before they admit it).

    Padding, on either side, does not count. A padded place itself gets that of the token before it, or 0.
    """
    count = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    if segments is not None:
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        count = count - jax.lax.cummax(jnp.where(begins, count - mask, 0), axis=1)
    if cache is not None:
        count = count + cache.mask.sum(-1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(count - 1, 0)


def causal_mask(
    mask: Bool[Array, "batch tokens"],
    segments: Int[Array, "batch tokens"] | None = None,
    cache: Cache | None = None,
    *,
    window: int | None = None,
) -> Bool[Array, "batch 1 tokens keys"]:
    """Which keys each token sees: itself and earlier unmasked ones of its segment, the last `window` of them at most.

    With `cache` (which has admitted these tokens) the keys are its slots. Raises ValueError for segments and a cache
    together: packed sequences are for training.
    """
    if cache is not None and segments is not None:
        raise ValueError("segments and a cache exclude each other")
    keys = mask if cache is None else cache.mask
    row = jnp.arange(mask.shape[1])[:, None] + (0 if cache is None else cache.length - mask.shape[1])
    column = jnp.arange(keys.shape[1])[None, :]
    seen = column <= row
    if window is not None:
        seen &= row - column < window
    wide = seen & keys[:, None, None, :]
    if segments is not None:
        wide &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return wide
