"""Generation from texts to texts."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lora_jax.data.tokens import left_pad
from lora_jax.delta import Delta, graft
from lora_jax.errors import UserError
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.search import generate
from lora_jax.models.options import ComputeOptions

if TYPE_CHECKING:
    from lora_jax.weights.load import Base


def generate_text(
    base: "Base",
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    delta: Delta | None = None,
    key: PRNGKeyArray | None = None,
    options: ComputeOptions = ComputeOptions(),
) -> list[str]:
    """Generates a text after each prompt.

    All prompts form one batch. Each number of prompts, length of the longest prompt, `decoding` and `options` is a
    program of its own.

    Args:
      base: the loaded model and its tokenizer.
      prompts: the texts to continue.
      decoding: the settings.
      delta: what is grafted onto the base, if anything.
      key: needed with a temperature, as in `generate`.
      options: how the model computes.

    Returns:
      The answers up to a stop token, without special tokens.

    Raises:
      UserError: a prompt has no token.
    """
    rows = [encoding.ids for encoding in base.tokenizer.encode_batch(list(prompts))]
    if empty := [prompt for prompt, row in zip(prompts, rows, strict=True) if not row]:
        raise UserError(f"prompt {empty[0]!r} has no token")
    tokens, mask = left_pad(rows, decoding.pad)
    answers = _compiled_generate(decoding, options)(base.model, delta, tokens, mask, key)
    return [base.tokenizer.decode(_until_stop(row, decoding)) for row in np.asarray(answers).tolist()]


@functools.cache
def _compiled_generate(decoding: Decoding, options: ComputeOptions):
    def answer(model, delta, tokens, mask, key):
        return generate(graft(model, delta or {}), tokens, mask, decoding, key, options=options)

    return jax.jit(answer)


def _until_stop(row: list[int], decoding: Decoding) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in decoding.stop), len(row))]
