"""Greedy search and sampling: one hypothesis per row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, PRNGKeyArray

from lora_jax.generate.constraints import filter_logits, forbid_repeats
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.forward import any_of_all, extend, prefill, write_token
from lora_jax.models.causal import CausalLM
from lora_jax.models.causality import Cache
from lora_jax.models.options import ComputeOptions


class SampleState(NamedTuple):
    """Prompts and answers so far.

    Attributes:
      tokens: the newest token, in `column`, is not in the cache yet.
      column: where the newest token stands.
      done: whether a row has its stop token.
      cache: the earlier tokens.
    """

    tokens: Int32[Array, "batch capacity"]
    column: Int[Array, ""]
    done: Bool[Array, " batch"]
    cache: Cache


def sample(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    decoding: Decoding,
    keys: PRNGKeyArray | None,
    options: ComputeOptions = ComputeOptions(),
) -> Int32[Array, "batch new_tokens"]:
    """Decodes greedily, or samples. See `generate`.

    Args:
      model: the language model.
      tokens: prompts that end in the last column.
      mask: False at padding.
      decoding: the settings.
      keys: one per row, to sample with. None decodes greedily.
      options: how the model computes.
    """
    length = tokens.shape[1]
    capacity = length + decoding.new_tokens

    def choose(logits, tokens, column):
        logits = forbid_repeats(logits, tokens, mask, column, decoding)
        if keys is None:
            return jnp.argmax(logits, axis=-1)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, column - length)
        return jax.vmap(jax.random.categorical)(step_keys, filter_logits(logits, decoding))

    def append(logits, tokens, column, done, cache):
        token = jnp.where(done, decoding.pad, choose(logits, tokens, column))
        return SampleState(write_token(tokens, column, token), column, done | decoding.is_stop(token), cache)

    def unfinished(state):
        return (state.column < capacity - 1) & any_of_all(~state.done)

    def step(state):
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.column, axis=1, keepdims=False)
        logits, cache = extend(model, newest, state.cache, options)
        return append(logits, state.tokens, state.column + 1, state.done, cache)

    padded = jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, decoding.new_tokens)), constant_values=decoding.pad)
    logits, cache = prefill(model, tokens, mask, capacity, options)
    first = append(logits, padded, jnp.int32(length), jnp.zeros(tokens.shape[0], bool), cache)
    return jax.lax.while_loop(unfinished, step, first).tokens[:, length:]
