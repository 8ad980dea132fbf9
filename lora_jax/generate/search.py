"""The one pure function for all kinds of decoding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, PRNGKeyArray

from lora_jax.errors import UserError
from lora_jax.generate.beam import beam_search
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.forward import align
from lora_jax.generate.sample import sample
from lora_jax.models.causal import CausalLM


def generate(
    model: CausalLM,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    decoding: Decoding,
    key: PRNGKeyArray | None = None,
    **how,
) -> Int32[Array, "batch new_tokens"]:
    """The tokens that follow each prompt: up to and with a stop token, `decoding.pad` after it.

    One pass over the prompts, then a `jax.lax.while_loop` over single tokens, which ends when every row is over. Pure
    and traceable, with one program for each shape; `decoding` is static. Prompts may be padded on either side (`mask`
    says where); each must have at least one token. `how` goes to the model (``dtype=``, which is the cache's too,
    ``unroll=``, ...).

    `model` may be a base, grafted, or merged. For several adapters at once,
    ``jax.vmap(lambda delta: generate(graft(base, delta), tokens, mask, decoding))(deltas)``; the loop then runs until
    the last of them is over, and each gives what it gives alone.

    `key` is needed with a temperature: one key, from which row i draws by ``fold_in(key, i)``, or one a row. At step s
    a row draws by ``fold_in(its key, s)``, whatever stands beside it.

    Raises UserError for token ids in `decoding` that the vocabulary lacks, and ValueError for a key that is missing.
    """
    vocabulary = model.backbone.config.vocab_size
    for name, ids in {"stop": decoding.stop, "pad": (decoding.pad,)}.items():
        if any(token >= vocabulary for token in ids):
            raise UserError(f"{name}={getattr(decoding, name)}: token ids must be below the vocabulary's {vocabulary}")
    tokens, mask = align(tokens, mask)
    if decoding.beams > 1:
        return beam_search(model, tokens, mask, decoding, how)
    keys = None
    if decoding.temperature:
        if key is None:
            raise ValueError(f"temperature={decoding.temperature} draws tokens: generate needs a key")
        keys = key if key.ndim else jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(tokens.shape[0]))
    return sample(model, tokens, mask, decoding, keys, how)
