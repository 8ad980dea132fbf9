"""Beam search, token for token that of ``transformers.generate`` with its default ``early_stopping=False``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from lora_jax.generate.constraints import forbid_repeats
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.forward import any_of_all, extend, prefill, write_token
from lora_jax.models.causal import CausalLM
from lora_jax.models.causality import Cache
from lora_jax.models.options import ComputeOptions

# The score of a beam that has no hypothesis yet. It is finite, so a hypothesis with a forbidden token (-inf) ranks
# below it.
EMPTY_SCORE = -1e9


class BeamState(NamedTuple):
    """The hypotheses of every row, best first.

    Attributes:
      tokens: hypotheses that continue. The newest token, in `column`, is not in the cache yet.
      column: where the newest token stands.
      score: their log-probabilities.
      finished: the best hypotheses that have ended.
      finished_score: their log-probability / length ** length_penalty, or EMPTY_SCORE.
      active: whether a hypothesis that continues can still beat one that has ended.
      cache: the earlier tokens, of batch * beams rows.
    """

    tokens: Int32[Array, "batch beams capacity"]
    column: Int[Array, ""]
    score: Float[Array, "batch beams"]
    finished: Int32[Array, "batch beams capacity"]
    finished_score: Float[Array, "batch beams"]
    active: Bool[Array, " batch"]
    cache: Cache


def beam_search(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    decoding: Decoding,
    options: ComputeOptions = ComputeOptions(),
) -> Int32[Array, "batch new_tokens"]:
    """Finds the best answer to each prompt. See `generate`.

    A row is done once it has `beams` hypotheses that have ended, and the worst of them is at least as good as the best
    that continues would be if it ended now. Hypotheses that continue at the last step end there. A hypothesis ends only
    if it is among the `beams` best continuations of its step.

    Args:
      model: the language model.
      tokens: prompts that end in the last column.
      mask: False at padding.
      decoding: the settings.
      options: how the model computes.
    """
    batch, length = tokens.shape
    beams, capacity = decoding.beams, length + decoding.new_tokens
    # So many candidates contain `beams` that continue, however many stop tokens are among them.
    candidates = beams * max(2, 1 + len(decoding.stop))
    repeated_mask = jnp.repeat(mask, beams, axis=0)
    divisors = np.arange(1, decoding.new_tokens + 1, dtype=np.float64) ** decoding.length_penalty

    def append(logits, state, column, cache):
        vocab = logits.shape[-1]
        flat = state.tokens.reshape(batch * beams, capacity)
        log_probs = forbid_repeats(jax.nn.log_softmax(logits), flat, repeated_mask, column, decoding)
        total = state.score[..., None] + log_probs.reshape(batch, beams, vocab)
        score, index = jax.lax.top_k(total.reshape(batch, beams * vocab), candidates)
        parent, token = index // vocab, index % vocab
        extended = write_token(_take(state.tokens, parent), column, token)
        ends = decoding.is_stop(token) | (column == capacity - 1)

        divisor = jnp.asarray(divisors, score.dtype)[column - length]
        counts = ends[:, :beams] & state.active[:, None]
        newly_finished = jnp.where(counts, score[:, :beams] / divisor, EMPTY_SCORE)
        finished_score, best = jax.lax.top_k(jnp.concatenate([state.finished_score, newly_finished], axis=1), beams)
        finished = _take(jnp.concatenate([state.finished, extended[:, :beams]], axis=1), best)

        score, continuing = jax.lax.top_k(jnp.where(ends, EMPTY_SCORE, score), beams)
        active = state.active & (score[:, 0] / divisor > finished_score[:, -1])
        rows = jnp.arange(batch)[:, None] * beams + _take(parent, continuing)
        first_new = cache.k.shape[2] - decoding.new_tokens  # the columns of prompt and virtual tokens end here
        cache = cache.reorder(rows.reshape(-1), start=first_new)
        return BeamState(_take(extended, continuing), column, score, finished, finished_score, active, cache)

    def unfinished(state):
        return (state.column < capacity - 1) & any_of_all(state.active)

    def step(state):
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.column, axis=2, keepdims=False)
        logits, cache = extend(model, newest.reshape(-1), state.cache, options)
        return append(logits, state, state.column + 1, cache)

    logits, cache = prefill(model, tokens, mask, capacity, options)
    padded = jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, decoding.new_tokens)), constant_values=decoding.pad)
    padded = jnp.repeat(padded[:, None], beams, axis=1)
    empty = jnp.full((batch, beams), EMPTY_SCORE, logits.dtype)
    # All beams hold the prompt. Only the first has a score, or all beams would stay equal.
    first_score, active = empty.at[:, 0].set(0), jnp.ones(batch, bool)
    start = BeamState(padded, jnp.int32(length), first_score, padded, empty, active, cache.repeat(beams))
    first = append(jnp.repeat(logits, beams, axis=0), start, start.column, start.cache)
    return jax.lax.while_loop(unfinished, step, first).finished[:, 0, length:]


def _take(x: Array, index: Int[Array, "batch chosen"]) -> Array:
    """Returns ``x[i, index[i]]`` for every row i."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)
