"""Scores every example of a split: a classifier's logits, a regression's values, or the likelihood of references."""

import operator
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar

import jax

from lora_jax.config import RunConfig
from lora_jax.data.encoding import TaskTokens
from lora_jax.evaluation.outputs import compute_outputs, lower_outputs
from lora_jax.metrics import Predictions
from lora_jax.train.evaluator import Compiled
from lora_jax.train.objective import OBJECTIVES, Objective
from lora_jax.train.step import Params, Program
from lora_jax.weights.load import Base

TITLES = {"valid": "validation", "test": "test"}


class ScoresEvaluator:
    """Computes the outputs of the task's objective for every example once."""

    splits: ClassVar[tuple[str, ...]] = ("valid", "test")

    def __init__(self, program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> None:
        self._program, self._base, self._names = program, base, tokens.data.labels
        self._batches = {split: tokens.eval_batches(run, split) for split in self.splits}

    @staticmethod
    def fields(objective: Objective) -> frozenset[str]:
        return objective.fields

    def lower(self, params: Params, constants: Any) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        return lower_outputs(self._program, self._base.model, self._batches.values(), params, constants)

    def describe(self, split: str, runs: int) -> str:
        return f"scoring {len(self._batches[split].encoded)} {TITLES[split]} examples"

    def evaluate(self, split: str, compiled: Compiled, params: Params, constants: Any) -> list[Predictions]:
        batches = self._batches[split]
        rows = compute_outputs(self._base.model, batches, compiled, params, constants)
        objective, runs = OBJECTIVES[self._program.objective], len(jax.tree.leaves(rows)[0])
        return [
            objective.predictions(jax.tree.map(operator.itemgetter(i), rows), batches.encoded.labels, self._names)
            for i in range(runs)
        ]

    def save(self, folder: Path, predictions: Predictions) -> None:
        """Writes nothing: the metrics say it all."""
