"""Changes to the logits before a token is chosen: repeated n-grams, temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lora_jax.generate.decoding import Decoding


def forbid_repeats(
    logits: Float[Array, "rows vocab"],
    tokens: Int[Array, "rows capacity"],
    prompt_mask: Bool[Array, "rows length"],
    column: Int[Array, ""],
    decoding: Decoding,
) -> Float[Array, "rows vocab"]:
    """Sets the logit of every token that would repeat an n-gram to -inf.

    An n-gram that contains padding does not count. ``transformers`` counts it, so there the answer may depend on how
    much padding a row has.

    Args:
      logits: those of the next token.
      tokens: prompt and answer so far.
      prompt_mask: False at the prompt's padding.
      column: the column of the next token.
      decoding: `no_repeat_ngram` and `no_repeat_prompt`.
    """
    n, (length, capacity) = decoding.no_repeat_ngram, (prompt_mask.shape[1], tokens.shape[1])
    windows = capacity - n + 1
    if n == 0 or windows < 1:
        return logits
    in_prompt = prompt_mask if decoding.no_repeat_prompt else jnp.zeros_like(prompt_mask)
    counts = jnp.pad(in_prompt, ((0, 0), (0, capacity - length)), constant_values=True) & (
        jnp.arange(capacity) < column
    )
    index = jnp.arange(windows)[:, None] + jnp.arange(n)

    def forbid_in_row(logits, tokens, counts):
        last = jax.lax.dynamic_slice_in_dim(tokens, column - n + 1, n - 1)
        last_counts = jax.lax.dynamic_slice_in_dim(counts, column - n + 1, n - 1).all() & (column >= n - 1)
        grams = tokens[index]
        repeated = counts[index].all(-1) & (grams[:, :-1] == last).all(-1) & last_counts
        return logits.at[jnp.where(repeated, grams[:, -1], logits.size)].set(-jnp.inf, mode="drop")

    return jax.vmap(forbid_in_row)(logits, tokens, counts)


def filter_logits(logits: Float[Array, "rows vocab"], decoding: Decoding) -> Float[Array, "rows vocab"]:
    """Applies temperature, then top-k, then top-p, in preparation for sampling.

    Tokens that are cut get -inf. Top-p keeps the fewest tokens whose probabilities sum to `top_p` (nucleus sampling,
    Holtzman et al., arXiv 1904.09751). As in ``transformers``, all tokens of a tie at the threshold stay.
    """
    logits = logits / decoding.temperature
    if 0 < decoding.top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(logits, decoding.top_k)[0][:, -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if decoding.top_p < 1:
        ascending = jnp.sort(logits, axis=-1)
        tail = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - decoding.top_p
        threshold = jnp.where(tail.at[:, -1].set(False), jnp.inf, ascending).min(-1, keepdims=True)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits
