"""`generate`: one pure function for greedy search, sampling and beam search."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, PRNGKeyArray

from lora_jax.errors import UserError
from lora_jax.generate.beam import beam_search
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.forward import align_right
from lora_jax.generate.sample import sample
from lora_jax.models.causal import CausalLM
from lora_jax.models.options import ComputeOptions


def generate(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    decoding: Decoding,
    key: PRNGKeyArray | None = None,
    *,
    options: ComputeOptions = ComputeOptions(),
) -> Int32[Array, "batch new_tokens"]:
    """Generates the tokens that follow each prompt.

    It runs the model once over the prompts and then, in a `jax.lax.while_loop`, over single tokens until every row is
    done. It is pure and traceable, and each shape is one program.

    For several adapters at once, use
    ``jax.vmap(lambda delta: generate(graft(base, delta), tokens, mask, decoding))(deltas)``. The loop then runs until
    the last adapter is done, and each adapter gives what it gives alone.

    Args:
      model: a base, a grafted model or a merged one.
      tokens: prompts, padded on either side. Each has at least one token.
      mask: False at padding.
      decoding: the settings. Static.
      key: needed with a temperature: one key, from which row i draws by ``fold_in(key, i)``, or one key per row. At
        step s a row draws by ``fold_in(row_key, s)``, so the other rows do not matter.
      options: how the model computes. Static. Their dtype is the cache's too.

    Returns:
      Each answer, its stop token included, followed by `decoding.pad`.

    Raises:
      UserError: the vocabulary lacks a token id of `decoding`.
      ValueError: the key is missing.
    """
    vocab_size = model.backbone.config.vocab_size
    for name, ids in {"stop": decoding.stop, "pad": (decoding.pad,)}.items():
        if any(token >= vocab_size for token in ids):
            raise UserError(f"{name}={getattr(decoding, name)}: token ids must be below the vocabulary's {vocab_size}")
    tokens, mask = align_right(tokens, mask)
    if decoding.beams > 1:
        return beam_search(model, tokens, mask, decoding, options)
    keys = None
    if decoding.temperature:
        if key is None:
            raise ValueError(f"temperature={decoding.temperature} draws tokens: generate needs a key")
        keys = key if key.ndim else jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(tokens.shape[0]))
    return sample(model, tokens, mask, decoding, keys, options)
