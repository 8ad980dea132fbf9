"""What every run of a pack writes for the test prompts, and its BLEU."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Int32

from lora_jax.config import RunConfig
from lora_jax.data.prompts import Prompts
from lora_jax.errors import UserError
from lora_jax.generate import Decoding, generate
from lora_jax.train.step import Params, Program, adapted, compute_options
from lora_jax.weights.load import Base


def decoding_of(run: RunConfig, base: Base) -> Decoding:
    """How `run` decodes; a text is over at any token that the checkpoint ends texts with.

    Raises UserError where the task has no settings for it.
    """
    if run.task.decode is None:
        raise UserError(f"task.decode is missing, and task={run.task.name} is to write; as in conf/task/e2e.yaml")
    return Decoding(**run.task.decode.model_dump(), stop=base.special.eos, pad=base.special.eos[0])


def texts_of(
    program: Program,
    decoding: Decoding,
    base: nnx.Module,
    params: Params,
    constants: Any,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> Int32[Array, "batch new_tokens"]:
    """What one run's model writes after each prompt."""
    model: Any = adapted(program, base, params, constants)
    return generate(model, tokens, mask, decoding, options=compute_options(program))


def packed_texts(program: Program, decoding: Decoding):
    """``(base, params, constants, tokens, mask) -> tokens [runs, batch, new_tokens]``, the prompts the same for all."""
    write = functools.partial(texts_of, program, decoding)
    return jax.jit(jax.vmap(write, in_axes=(None, 0, 0, None, None)))


def write(
    texts_of, base: Base, params: Params, constants: Any, prompts: Prompts, decoding: Decoding, batch: int
) -> list[list[str]]:
    """Each run's texts, one a prompt, without special tokens; `texts_of` is `packed_texts`, maybe compiled."""
    rows = [
        texts_of(base.model, params, constants, *jax.device_put((tokens, mask)))
        for tokens, mask in prompts.batches(batch)
    ]
    written = np.concatenate(jax.device_get(rows), axis=1)[:, : len(prompts)]
    ended = np.isin(written, decoding.stop).cumsum(-1) > 0
    return [
        [text.strip() for text in base.tokenizer.decode_batch([r[~e] for r, e in zip(*run, strict=True)])]
        for run in zip(written, ended, strict=True)
    ]


def save_texts(file: Path, prompts: Prompts, texts: Sequence[str]) -> None:
    """A line of JSON for each prompt: it, the text, and the references."""
    with file.open("w", encoding="utf-8") as out:
        for prompt, text, references in zip(prompts.texts, texts, prompts.references, strict=True):
            record = {"prompt": prompt, "text": text, "references": references}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
