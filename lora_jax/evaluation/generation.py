"""Generates a text for every test prompt."""

import functools
import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Int32

from lora_jax.config import RunConfig
from lora_jax.data.encoding import TaskTokens
from lora_jax.errors import UserError
from lora_jax.generate import Decoding, generate
from lora_jax.metrics import Predictions
from lora_jax.records import write_atomically
from lora_jax.train.evaluator import Compiled
from lora_jax.train.objective import Objective
from lora_jax.train.sharding import put_batch
from lora_jax.train.step import Params, Program, adapt, compute_options
from lora_jax.weights.load import Base


class GenerationEvaluator:
    """Generates texts with all runs of a pack in one program, and keeps them in ``texts.jsonl``."""

    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> None:
        if tokens.prompts is None:
            raise ValueError(f"task={run.task.name} has no prompts: its objective must be generation")
        self._program, self._base, self._batch = program, base, run.eval_batch
        self._prompts = tokens.prompts
        self._decoding = decoding_of(run, base)

    @staticmethod
    def fields(objective: Objective) -> frozenset[str]:
        return frozenset({"texts", "references"})

    def lower(self, params: Params, constants: Any) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        tokens, mask = next(self._prompts.batches(self._batch))
        packed = packed_generation(self._program, self._decoding)
        return {self._key(tokens): functools.partial(packed.lower, self._base.model, params, constants, tokens, mask)}

    def describe(self, split: str, runs: int) -> str:
        return f"generating {runs} x {len(self._prompts)} {split} texts"

    def evaluate(self, split: str, compiled: Compiled, params: Params, constants: Any) -> list[Predictions]:
        rows = [
            compiled[self._key(tokens)](self._base.model, params, constants, *put_batch((tokens, mask)))
            for tokens, mask in self._prompts.batches(self._batch)
        ]
        generated = np.concatenate(jax.device_get(rows), axis=1)[:, : len(self._prompts)]
        return [Predictions(texts=self._decode(run), references=self._prompts.references) for run in generated]

    def save(self, folder: Path, predictions: Predictions) -> None:
        """Writes ``texts.jsonl``: a line for each prompt, with the generated text and the references."""
        lines = zip(self._prompts.texts, predictions.texts or (), self._prompts.references, strict=True)
        records = [{"prompt": prompt, "text": text, "references": references} for prompt, text, references in lines]
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomically(folder / "texts.jsonl", content.encode())

    def _key(self, tokens: Int32[np.ndarray, "batch seq"]) -> Hashable:
        return "generate", tokens.shape, self._decoding

    def _decode(self, tokens: Int32[np.ndarray, "prompts new_tokens"]) -> list[str]:
        """Returns the texts without special tokens, up to the token that ends them."""
        ended = np.isin(tokens, self._decoding.stop).cumsum(-1) > 0
        rows = [row[~end] for row, end in zip(tokens, ended, strict=True)]
        return [text.strip() for text in self._base.tokenizer.decode_batch(rows)]


def decoding_of(run: RunConfig, base: Base) -> Decoding:
    """Returns how `run` generates; a text ends at any token with which the checkpoint ends texts.

    Raises:
      UserError: the task has no settings for it.
    """
    if run.task.decode is None:
        raise UserError(
            f"task.decode is missing, and task={run.task.name} generates texts; give it as conf/task/e2e.yaml does"
        )
    return Decoding(**run.task.decode.model_dump(), stop=base.special.eos, pad=base.special.eos[0])


def packed_generation(program: Program, decoding: Decoding) -> Any:
    """Returns the jitted ``(base, params, constants, tokens, mask) -> tokens [runs, batch, new_tokens]``.

    All runs are given the same prompts.
    """
    generate_run: Callable[..., Array] = functools.partial(_generate, program, decoding)
    return jax.jit(jax.vmap(generate_run, in_axes=(None, 0, 0, None, None)))


def _generate(
    program: Program,
    decoding: Decoding,
    base: nnx.Module,
    params: Params,
    constants: Any,
    tokens: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
) -> Int32[Array, "batch new_tokens"]:
    model: Any = adapt(program, base, params, constants)
    return generate(model, tokens, mask, decoding, options=compute_options(program))
