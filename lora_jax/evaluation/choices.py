"""Answers by likelihood: of the choices of each example, the one that the model finds likeliest after the prompt."""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from lora_jax.config import RunConfig
from lora_jax.data.batches import EvalBatches
from lora_jax.data.encoding import TaskTokens, end_of_text
from lora_jax.data.examples import Examples
from lora_jax.data.tokens import tokenize_for_generation
from lora_jax.evaluation.outputs import compute_outputs, lower_outputs
from lora_jax.evaluation.scores import TITLES
from lora_jax.metrics import Predictions
from lora_jax.train.evaluator import Compiled
from lora_jax.train.objective import Objective
from lora_jax.train.step import Params, Program
from lora_jax.weights.load import Base


class ChoicesEvaluator:
    """Computes the log-likelihood of every choice of every example, in nats, summed over its tokens.

    The logits of `Predictions` are these log-likelihoods, so accuracy is the share of examples whose right choice is
    the likeliest. The sum is not divided by the length: the choices of an example are of nearly the same length.
    """

    splits: ClassVar[tuple[str, ...]] = ("valid", "test")

    def __init__(self, program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> None:
        self._program, self._base = program, base
        self._examples = {split: tokens.scored[split] for split in self.splits}
        self._batches = {split: self._encode(examples, run, tokens) for split, examples in self._examples.items()}

    @staticmethod
    def fields(objective: Objective) -> frozenset[str]:
        return frozenset({"labels", "logits"})

    def lower(self, params: Params, constants: Any) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        return lower_outputs(self._program, self._base.model, self._batches.values(), params, constants)

    def describe(self, split: str, runs: int) -> str:
        return f"scoring the choices of {len(self._examples[split])} {TITLES[split]} examples"

    def evaluate(self, split: str, compiled: Compiled, params: Params, constants: Any) -> list[Predictions]:
        examples = self._examples[split]
        likelihoods = compute_outputs(self._base.model, self._batches[split], compiled, params, constants)
        choices = examples.choices or []
        counts = np.array([len(texts) for texts in choices])
        present = np.arange(counts.max()) < counts[:, None]
        labels = np.array([texts.index(label) for texts, label in zip(choices, examples.labels, strict=True)], np.int32)
        predictions = []
        for losses in np.asarray(likelihoods.losses, np.float64):
            logits = np.full(present.shape, -np.inf)
            logits[present] = -losses
            predictions.append(Predictions(labels=labels, logits=logits))
        return predictions

    def save(self, folder: Path, predictions: Predictions) -> None:
        """Writes nothing: the metrics say it all."""

    def _encode(self, examples: Examples, run: RunConfig, tokens: TaskTokens) -> EvalBatches:
        """Returns the batches of every choice of every example, in order."""
        if examples.choices is None:
            raise ValueError(f"task={run.task.name} has no choices to score")
        rows = [row for row, choices in enumerate(examples.choices) for _ in choices]
        expanded = Examples(
            [examples.texts[row] for row in rows], [text for choices in examples.choices for text in choices]
        )
        length = max(tokens.buckets_of(run))
        encoded = tokenize_for_generation(expanded, self._base.tokenizer, end_of_text(self._base), length)
        return EvalBatches(encoded, batch=min(run.eval_batch, len(encoded)), buckets=tokens.buckets_of(run))
