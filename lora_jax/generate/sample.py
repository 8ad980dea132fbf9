"""Greedy search and drawing: one hypothesis a row."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, PRNGKeyArray

from lora_jax.generate.constraints import restricted, without_repeats
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.forward import anywhere, extend, prefill, write
from lora_jax.models.causal import CausalLM
from lora_jax.models.causality import Cache


class Rows(NamedTuple):
    """Text so far: slot `cache.length` holds the newest token, which is not in the cache yet."""

    text: Int32[Array, "batch slots"]
    done: Bool[Array, " batch"]
    cache: Cache


def sample(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    decoding: Decoding,
    keys: PRNGKeyArray | None,
    how: Mapping[str, Any],
) -> Int32[Array, "batch new_tokens"]:
    """The answers to aligned prompts; `keys`, one a row, where `decoding` draws. See generate."""
    length = tokens.shape[1]
    slots = length + decoding.new_tokens

    def choose(logits, text, cache):
        logits = without_repeats(logits, text, cache, length, decoding)
        if keys is None:
            return jnp.argmax(logits, axis=-1)
        at_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, cache.length - length)
        return jax.vmap(jax.random.categorical)(at_step, restricted(logits, decoding))

    def take(logits, text, done, cache):
        token = jnp.where(done, decoding.pad, choose(logits, text, cache))
        return Rows(write(text, cache.length, token), done | decoding.ends(token), cache)

    def unfinished(rows):
        return (rows.cache.length < slots - 1) & anywhere(~rows.done)

    def step(rows):
        newest = jax.lax.dynamic_index_in_dim(rows.text, rows.cache.length, axis=1, keepdims=False)
        logits, cache = extend(model, newest, rows.cache, how)
        return take(logits, rows.text, rows.done, cache)

    text = jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, decoding.new_tokens)), constant_values=decoding.pad)
    logits, cache = prefill(model, tokens, mask, slots, how)
    first = take(logits, text, jnp.zeros(tokens.shape[0], bool), cache)
    return jax.lax.while_loop(unfinished, step, first).text[:, length:]
