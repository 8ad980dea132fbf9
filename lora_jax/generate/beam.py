"""Beam search, token for token that of ``transformers.generate`` with its default ``early_stopping=False``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from lora_jax.generate.constraints import without_repeats
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.forward import anywhere, extend, prefill, write
from lora_jax.models.causal import CausalLM
from lora_jax.models.causality import Cache

# Of a place that no hypothesis has yet. Finite, so that a hypothesis with a forbidden token (-inf) ranks below it.
NONE = -1e9


class Beams(NamedTuple):
    """The hypotheses of every row, best first: those that go on, and the best that have ended.

    Slot `cache.length` of a `text` that goes on holds its newest token, which is not in the cache yet.
    """

    text: Int32[Array, "batch beams slots"]
    score: Float[Array, "batch beams"]  # log-probability
    ended: Int32[Array, "batch beams slots"]
    ended_score: Float[Array, "batch beams"]  # log-probability / length ** length_penalty, or NONE
    open: Bool[Array, " batch"]  # whether one that goes on may still beat one that has ended
    cache: Cache  # of batch * beams rows


def beam_search(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    decoding: Decoding,
    how: Mapping[str, Any],
) -> Int32[Array, "batch new_tokens"]:
    """The best answer to each of the aligned prompts. See generate.

    A row is over once it has `beams` ended hypotheses of which the worst is no worse than the best that goes on would
    be if it ended now. What goes on at the last step ends there. A hypothesis ends only if it is among the `beams` best
    continuations of its step.
    """
    batch, length = tokens.shape
    beams, slots = decoding.beams, length + decoding.new_tokens
    # So many continuations hold `beams` that go on, however many stop tokens are among them.
    kept = beams * max(2, 1 + len(decoding.stop))
    divisors = np.arange(1, decoding.new_tokens + 1, dtype=np.float64) ** decoding.length_penalty

    def take(logits, state, cache):
        at, vocabulary = cache.length, logits.shape[-1]
        flat = state.text.reshape(batch * beams, slots)
        log_probs = without_repeats(jax.nn.log_softmax(logits), flat, cache, length, decoding)
        total = state.score[..., None] + log_probs.reshape(batch, beams, vocabulary)
        score, index = jax.lax.top_k(total.reshape(batch, beams * vocabulary), kept)
        parent, token = index // vocabulary, index % vocabulary
        text = write(_pick(state.text, parent), at, token)
        ends = decoding.ends(token) | (at == slots - 1)

        divisor = jnp.asarray(divisors, score.dtype)[at - length]
        counts = ends[:, :beams] & state.open[:, None]
        ended_score, best = jax.lax.top_k(
            jnp.concatenate([state.ended_score, jnp.where(counts, score[:, :beams] / divisor, NONE)], axis=1), beams
        )
        ended = _pick(jnp.concatenate([state.ended, text[:, :beams]], axis=1), best)

        score, going = jax.lax.top_k(jnp.where(ends, NONE, score), beams)
        still_open = state.open & (score[:, 0] / divisor > ended_score[:, -1])
        rows = jnp.arange(batch)[:, None] * beams + _pick(parent, going)
        cache = cache.reorder(rows.reshape(-1), start=length)
        return Beams(_pick(text, going), score, ended, ended_score, still_open, cache)

    def unfinished(state):
        return (state.cache.length < slots - 1) & anywhere(state.open)

    def step(state):
        newest = jax.lax.dynamic_index_in_dim(state.text, state.cache.length, axis=2, keepdims=False)
        logits, cache = extend(model, newest.reshape(-1), state.cache, how)
        return take(logits, state, cache)

    logits, cache = prefill(model, tokens, mask, slots, how)
    text = jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, decoding.new_tokens)), constant_values=decoding.pad)
    text = jnp.repeat(text[:, None], beams, axis=1)
    nothing = jnp.full((batch, beams), NONE, logits.dtype)
    # All beams hold the prompt: only the first counts, or they would stay equal.
    start = Beams(text, nothing.at[:, 0].set(0), text, nothing, jnp.ones(batch, bool), cache.repeat(beams))
    first = take(jnp.repeat(logits, beams, axis=0), start, start.cache)
    return jax.lax.while_loop(unfinished, step, first).ended[:, 0, length:]


def _pick(x: Array, index: Int[Array, "batch chosen"]) -> Array:
    """``x[i, index[i]]`` for every row i."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)
