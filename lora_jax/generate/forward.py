"""The model's part of decoding: the prompt fills the cache, then one token at a time extends it."""

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.causal import CausalLM
from lora_jax.models.causality import Cache
from lora_jax.models.options import ComputeOptions


def align_right(
    tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """Rolls each prompt so that it ends in the last column. Padding on the right moves to the left."""
    length = tokens.shape[1]
    end = length - jnp.argmax(mask[:, ::-1], axis=1)
    columns = (jnp.arange(length) + end[:, None]) % length
    return jnp.take_along_axis(tokens, columns, 1), jnp.take_along_axis(mask, columns, 1)


def prefill(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    capacity: int,
    options: ComputeOptions = ComputeOptions(),
) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Runs the model on prompts that end in the last column. It inserts its virtual tokens, if it has any.

    Returns:
      The logits of the first new token, and a cache with room for `capacity` tokens that holds the prompts. Its dtype
      is the options'. Virtual tokens take further columns of it, before those of new tokens.
    """
    cache = model.backbone.empty_cache(tokens.shape[0], capacity, options.dtype)
    hidden, cache = model.backbone(tokens, mask, cache=cache, options=options)
    return model.logits(hidden[:, -1]), cache


def extend(
    model: CausalLM, token: Int[Array, " rows"], cache: Cache, options: ComputeOptions = ComputeOptions()
) -> tuple[Float[Array, "rows vocab"], Cache]:
    """Runs the model on one more token per row.

    Returns:
      The logits of the token after `token`, and the cache with `token` in it.
    """
    mask = jnp.ones((token.size, 1), bool)
    logits, cache = model(token[:, None], mask, cache=cache, options=options, start=False)
    return logits[:, 0], cache


@custom_vmap
def any_of_all(flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Returns whether any flag is set. Under `jax.vmap`, whether any flag of any member is set.

    A while_loop thus keeps one condition for all members. With a condition per member, JAX would select between the
    old and the new value of the whole loop state at every step, the cache included, and would give each member its own
    step number. In return, the loop's body must not change members that are done.
    """
    return jnp.any(flags)


@any_of_all.def_vmap
def _any_of_all_vmap(size, batched, flags):
    return any_of_all(flags), False


def write_token(
    tokens: Int[Array, "*rows capacity"], column: Int[Array, ""], token: Int[Array, "*rows"]
) -> Int[Array, "*rows capacity"]:
    """Returns `tokens` with each row's `token` in `column`."""
    return jax.lax.dynamic_update_index_in_dim(tokens, token.astype(tokens.dtype), column, axis=tokens.ndim - 1)
