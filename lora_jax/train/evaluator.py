"""The contract between the training loop and what evaluates its runs. ``evaluation/`` has the evaluators."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax

from lora_jax.config import RunConfig
from lora_jax.data.encoding import TaskTokens
from lora_jax.metrics import Predictions
from lora_jax.train.objective import Objective
from lora_jax.train.step import Params, Program
from lora_jax.weights.load import Base

Compiled = Mapping[Hashable, jax.stages.Compiled]


class Evaluator(Protocol):
    """Computes predictions of every run of a pack. It is built for one pack, and holds no parameters of its runs.

    In all methods the leaves of `params` and `constants` are ``[runs, ...]``.

    Attributes:
      splits: the splits that it evaluates: ``valid`` after every validation step, ``test`` at the end.
    """

    splits: ClassVar[tuple[str, ...]]

    def __init__(self, program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> None:
        """Prepares the batches. `run` is any run of the pack.

        Raises:
          UserError: `run` lacks settings that this evaluator needs.
        """

    @staticmethod
    def fields(objective: Objective) -> frozenset[str]:
        """Returns the fields of `Predictions` that it fills for a task with this objective."""

    def lower(self, params: Params, constants: Any) -> dict[Hashable, jax.stages.Lowered]:
        """Returns every program that `evaluate` needs, by a key of the evaluator's own choice, for the caller to
        compile. Shapes are enough for `params` and `constants`.
        """

    def describe(self, split: str, runs: int) -> str:
        """Returns what `evaluate` does, for the progress display."""

    def evaluate(self, split: str, compiled: Compiled, params: Params, constants: Any) -> list[Predictions]:
        """Returns the predictions of each run; `compiled` has the programs of `lower`."""

    def save(self, folder: Path, predictions: Predictions) -> None:
        """Writes what is worth keeping of one run's test predictions into the folder of its results."""
