"""The contract between the training loop and evaluators. The package ``evaluation`` implements evaluators."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from lora_jax.config import RunConfig
from lora_jax.data.encoding import TaskTokens
from lora_jax.metrics import Predictions
from lora_jax.train.objective import Objective
from lora_jax.train.step import Params, Program
from lora_jax.weights.load import Base

Compiled = Mapping[Hashable, jax.stages.Compiled]


class Evaluator(Protocol):
    """Computes predictions for every run of a pack. An evaluator belongs to one pack and stores no parameters.

    In all methods the leaves of `params` and `constants` have shape ``[runs, ...]``.

    Attributes:
      splits: the splits to evaluate. ``valid`` is evaluated at validation steps, ``test`` at the end.
    """

    splits: ClassVar[tuple[str, ...]]

    def __init__(self, program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> None:
        """Prepares the batches. `run` may be any run of the pack.

        Raises:
          UserError: `run` lacks settings that this evaluator needs.
        """

    @staticmethod
    def fields(objective: Objective) -> frozenset[str]:
        """Returns the fields of `Predictions` that the evaluator fills for a task with this objective."""

    def lower(self, params: Params, constants: Any) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        """Returns functions that lower every program that `evaluate` needs. The caller compiles them.

        Args:
          params: trained parameters, arrays or shapes.
          constants: the adapters' constants, arrays or shapes.

        Returns:
          The functions, by keys that the evaluator chooses. Evaluators with equal keys share a program, so a key begins
          with the name of the computation.
        """

    def describe(self, split: str, runs: int) -> str:
        """Returns a description of `evaluate` for the progress display."""

    def evaluate(self, split: str, compiled: Compiled, params: Params, constants: Any) -> list[Predictions]:
        """Returns the predictions of each run. `compiled` has the compiled programs of `lower`."""

    def save(self, folder: Path, predictions: Predictions) -> None:
        """Writes files about one run's test predictions to `folder`, the folder of the run's results."""


@dataclasses.dataclass(frozen=True)
class TaskEvaluators:
    """The evaluators of a pack's runs of one task.

    Attributes:
      runs: the places of these runs in the pack.
      evaluators: by name.
    """

    runs: tuple[int, ...]
    evaluators: Mapping[str, Evaluator]

    def select(self, tree: Any) -> Any:
        """Returns the part of a pack's tree, leaves ``[runs, ...]``, that belongs to these runs."""
        whole = len(jax.tree.leaves(tree)[0]) == len(self.runs) if jax.tree.leaves(tree) else True
        return tree if whole else _take(tree, self.runs)


@functools.partial(jax.jit, static_argnums=1)
def _take(tree: Any, runs: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf[np.array(runs)], tree)
