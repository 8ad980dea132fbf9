"""The model's side of decoding: a prompt into the cache, then a token at a time."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.causal import CausalLM
from lora_jax.models.causality import Cache


def align(
    tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """The same prompts, each turned so that it ends in the last column: padding on the right goes to the left."""
    length = tokens.shape[1]
    end = length - jnp.argmax(mask[:, ::-1], axis=1)
    turned = (jnp.arange(length) + end[:, None]) % length
    return jnp.take_along_axis(tokens, turned, 1), jnp.take_along_axis(mask, turned, 1)


def prefill(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    slots: int,
    how: Mapping[str, Any],
) -> tuple[Float[Array, "batch vocabulary"], Cache]:
    """The logits of the first new token after aligned prompts, and a cache of `slots` that holds them."""
    cache = model.backbone.empty_cache(tokens.shape[0], slots, how.get("dtype", jnp.float32))
    hidden, cache = model.backbone(tokens, mask, cache=cache, **how)
    return model.logits(hidden[:, -1]), cache


def extend(
    model: CausalLM, token: Int[Array, " rows"], cache: Cache, how: Mapping[str, Any]
) -> tuple[Float[Array, "rows vocabulary"], Cache]:
    """The logits of the token after `token`, and the cache with `token` in it."""
    logits, cache = model(token[:, None], jnp.ones((token.size, 1), bool), cache=cache, **how)
    return logits[:, 0], cache


@custom_vmap
def anywhere(flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether any flag is set; under `jax.vmap`, whether any is set in any member.

    So the condition of a while_loop stays one for all. A condition for each member would make JAX select between the
    old and the new of everything in the loop at every step, the whole cache included, and give each its own step
    number. The loop's body must leave members that are done as they are.
    """
    return jnp.any(flags)


@anywhere.def_vmap
def _anywhere_of_all(size, batched, flags):
    return anywhere(flags), False


def write(text: Int[Array, "*rows slots"], at: Int[Array, ""], token: Int[Array, "*rows"]) -> Int[Array, "*rows slots"]:
    """`text` with a row's `token` in slot `at`."""
    return jax.lax.dynamic_update_index_in_dim(text, token.astype(text.dtype), at, axis=text.ndim - 1)
