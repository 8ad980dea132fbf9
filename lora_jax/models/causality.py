"""What a decoder's token attends to: positions, causal masks, and the cache of earlier keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in arrays that have room for `capacity` tokens.

    Attributes:
      k: keys of every layer.
      v: values of every layer.
      mask: False where the cache holds padding, or nothing yet.
      length: the number of tokens in the cache, padding included.
    """

    k: Float[Array, "layers batch capacity kv_heads d_head"]
    v: Float[Array, "layers batch capacity kv_heads d_head"]
    mask: Bool[Array, "batch capacity"]
    length: Int[Array, ""]

    def reserve(self, mask: Bool[Array, "batch seq"]) -> "Cache":
        """Returns the cache with room taken for the next tokens. `mask` says which of them are not padding.

        The caller must not exceed the capacity: `length` is traced, so this method cannot check it.
        """
        extended = jax.lax.dynamic_update_slice(self.mask, mask, (0, self.length))
        return self._replace(mask=extended, length=self.length + mask.shape[1])

    def write(
        self,
        layer: Int[Array, ""],
        k: Float[Array, "batch seq kv_heads d_head"],
        v: Float[Array, "batch seq kv_heads d_head"],
    ) -> tuple["Cache", Float[Array, "batch capacity kv_heads d_head"], Float[Array, "batch capacity kv_heads d_head"]]:
        """Writes the keys and values of the tokens that were reserved last.

        Returns:
          The new cache, and all keys and all values of `layer`.
        """
        start = (layer, 0, self.length - k.shape[1], 0, 0)
        keys = jax.lax.dynamic_update_slice(self.k, k[None].astype(self.k.dtype), start)
        values = jax.lax.dynamic_update_slice(self.v, v[None].astype(self.v.dtype), start)
        return self._replace(k=keys, v=values), keys[layer].astype(k.dtype), values[layer].astype(v.dtype)

    def repeat(self, times: int) -> "Cache":
        """Returns the cache with every row of the batch repeated `times` times in a row."""
        k, v = (jnp.repeat(x, times, axis=1) for x in (self.k, self.v))
        return self._replace(k=k, v=v, mask=jnp.repeat(self.mask, times, axis=0))

    def reorder(self, rows: Int[Array, " batch"], *, start: int = 0) -> "Cache":
        """Returns the cache whose row i holds what row ``rows[i]`` held, from column `start` on.

        Earlier columns stay as they are: in a beam search both rows hold the same prompt there.
        """
        k, v = (x.at[:, :, start:].set(x[:, rows, start:]) for x in (self.k, self.v))
        return self._replace(k=k, v=v, mask=self.mask.at[:, start:].set(self.mask[rows, start:]))


def empty_cache(
    layers: int, batch: int, capacity: int, kv_heads: int, d_head: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Returns an empty cache with room for `capacity` tokens."""
    zeros = jnp.zeros((layers, batch, capacity, kv_heads, d_head), dtype)
    return Cache(zeros, zeros, jnp.zeros((batch, capacity), bool), jnp.int32(0))


def token_positions(
    mask: Bool[Array, "batch seq"], segments: Int[Array, "batch seq"] | None = None, cache: Cache | None = None
) -> Int[Array, "batch seq"]:
    """Returns the position of each token among the unmasked tokens of its segment.

    Padding does not count, on either side. A padded column has the position of the token before it, or 0.

    Args:
      mask: False at padding.
      segments: the number of the sequence that each token belongs to, where several are packed into a row.
      cache: earlier tokens, before it reserves room for these. Positions continue after them.
    """
    count = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    if segments is not None:
        is_first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        count = count - jax.lax.cummax(jnp.where(is_first, count - mask, 0), axis=1)
    if cache is not None:
        count = count + cache.mask.sum(-1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(count - 1, 0)


def causal_mask(
    mask: Bool[Array, "batch seq"],
    segments: Int[Array, "batch seq"] | None = None,
    cache: Cache | None = None,
    *,
    window: int | None = None,
) -> Bool[Array, "batch 1 seq keys"]:
    """Returns which keys each token attends to: itself and earlier unmasked tokens of its segment.

    Args:
      mask: False at padding.
      segments: the number of the sequence that each token belongs to.
      cache: earlier tokens, after it has reserved room for these. The keys are then the cache's columns.
      window: how many tokens a token attends to, itself included. None means all.

    Raises:
      ValueError: both segments and a cache are given. Packed sequences are for training.
    """
    if cache is not None and segments is not None:
        raise ValueError("segments and a cache exclude each other")
    keys = mask if cache is None else cache.mask
    row = jnp.arange(mask.shape[1])[:, None] + (0 if cache is None else cache.length - mask.shape[1])
    column = jnp.arange(keys.shape[1])[None, :]
    visible = column <= row
    if window is not None:
        visible &= row - column < window
    full = visible & keys[:, None, None, :]
    if segments is not None:
        full &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return full
