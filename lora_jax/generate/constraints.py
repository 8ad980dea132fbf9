"""Logits before a token is chosen: n-grams that may not come again, temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.generate.decoding import Decoding
from lora_jax.models.causality import Cache


def without_repeats(
    logits: Float[Array, "rows vocabulary"],
    text: Int[Array, "rows slots"],
    cache: Cache,
    length: int,
    decoding: Decoding,
) -> Float[Array, "rows vocabulary"]:
    """`logits` of the token after those in `cache`, at -inf where it would end an n-gram of `text` a second time.

    `text` has the cache's slots, the first `length` of them the prompt's. An n-gram that reaches into padding is none;
    ``transformers`` counts it, so there a row's answer may depend on how far it is padded.
    """
    n, at = decoding.no_repeat_ngram, cache.length
    windows = text.shape[1] - n + 1
    if n == 0 or windows < 1:
        return logits
    known = cache.mask if decoding.no_repeat_prompt else cache.mask & (jnp.arange(text.shape[1]) >= length)
    index = jnp.arange(windows)[:, None] + jnp.arange(n)

    def row(logits, text, known):
        begun = jax.lax.dynamic_slice_in_dim(text, at - n + 1, n - 1)
        whole = jax.lax.dynamic_slice_in_dim(known, at - n + 1, n - 1).all() & (at >= n - 1)
        grams = text[index]
        again = known[index].all(-1) & (grams[:, :-1] == begun).all(-1) & whole
        return logits.at[jnp.where(again, grams[:, -1], logits.size)].set(-jnp.inf, mode="drop")

    return jax.vmap(row)(logits, text, known)


def restricted(logits: Float[Array, "rows vocabulary"], decoding: Decoding) -> Float[Array, "rows vocabulary"]:
    """`logits` to draw from: divided by the temperature, then the `top_k` largest, then the fewest that have `top_p`.

    What is cut is at -inf. Top-p is nucleus sampling (Holtzman et al., arXiv 1904.09751). As in ``transformers``,
    all of a tie on the border stay.
    """
    logits = logits / decoding.temperature
    if 0 < decoding.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, decoding.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if decoding.top_p < 1:
        ascending = jnp.sort(logits, axis=-1)
        tail = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - decoding.top_p
        least = jnp.where(tail.at[:, -1].set(False), jnp.inf, ascending).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
