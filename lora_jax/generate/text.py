"""Texts in, texts out: generation for people."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lora_jax.data.tokens import left_padded
from lora_jax.delta import Delta, graft
from lora_jax.errors import UserError
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.search import generate

if TYPE_CHECKING:
    from lora_jax.weights.load import Base


def generate_text(
    base: "Base",
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    delta: Delta | None = None,
    key: PRNGKeyArray | None = None,
    **how,
) -> list[str]:
    """What follows each prompt, without special tokens, up to a stop token, with `delta` grafted onto the base.

    All prompts go as one batch, in one program for each shape: each number of prompts, longest prompt and `decoding`.
    Raises UserError for a prompt that comes to no token.
    """
    rows = [encoding.ids for encoding in base.tokenizer.encode_batch(list(prompts))]
    if empty := [prompt for prompt, row in zip(prompts, rows, strict=True) if not row]:
        raise UserError(f"prompt {empty[0]!r} comes to no token")
    tokens, mask = left_padded(rows, decoding.pad)
    answers = _program(decoding, tuple(how.items()))(base.model, delta, tokens, mask, key)
    return [base.tokenizer.decode(_until_stop(row, decoding)) for row in np.asarray(answers).tolist()]


@functools.cache
def _program(decoding: Decoding, how: tuple[tuple[str, Any], ...]):
    def answer(model, delta, tokens, mask, key):
        return generate(graft(model, delta or {}), tokens, mask, decoding, key, **dict(how))

    return jax.jit(answer)


def _until_stop(row: list[int], decoding: Decoding) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in decoding.stop), len(row))]
