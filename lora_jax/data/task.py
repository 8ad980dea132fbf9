"""Tasks: their objective, metrics and data."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Int32

from lora_jax.config import TaskConfig
from lora_jax.errors import UserError
from lora_jax.metrics import METRICS, Scoring


class Split(Protocol):
    """The examples of one split, as they are loaded: `Examples`, `TaggedWords` or `UnlabelledTexts`."""

    @property
    def classes(self) -> Int32[np.ndarray, " classes"] | None:
        """The classes of all examples, positions in the task's list of labels, or None if examples have none."""
        ...

    @property
    def content(self) -> list[Any]:
        """What the fingerprint covers: lists that JSON can write."""
        ...

    def __len__(self) -> int: ...

    def scored(self, limit: int | None) -> Self:
        """Returns the examples that are scored, at most the first `limit`."""
        ...


SplitT = TypeVar("SplitT", bound=Split)


@dataclass(frozen=True, eq=False)
class TaskData(Generic[SplitT]):
    """The loaded data of a task.

    `labels` names the classes; it is empty unless the task is a classification. `splits` has ``train``, ``valid`` and
    ``test``. Raises UserError if an example is of a class that `labels` does not name.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, SplitT]

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            classes = split.classes
            if classes is not None and not set(np.unique(classes)) <= set(range(len(self.labels))):
                raise UserError(
                    f"the {name} split has labels from {classes.min()} to {classes.max()}; expected 0 to "
                    f"{len(self.labels) - 1}, of {len(self.labels)} classes"
                )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the label names and the content of every split, in order."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(json.dumps([name, *split.content]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Task:
    """The description of a task, without its data.

    Attributes:
      name: the name that ``task.name`` takes.
      objective: the loss and the head: a key of ``train.objective.OBJECTIVES``.
      evaluators: the evaluators of a trained run: keys of ``evaluation.EVALUATORS``.
      metrics: the metrics that are recorded, in order: keys of ``metrics.METRICS``.
      metric: the headline metric, on the test split.
      select: the metric on the validation split that picks the best evaluation of a run.
      load: reads the data, from a folder of raw files or, given None, from the task's default place.
      folder: where the task's raw files lie below ``data_root``, such as ``glue/CoLA``; empty for a task without any.
    """

    name: str
    objective: Literal["classification", "regression", "generation", "token_classification", "masked_lm"]
    evaluators: tuple[str, ...]
    metrics: tuple[str, ...]
    metric: str
    select: str
    load: Callable[[Path | None], TaskData]
    folder: str = ""

    def scoring(self, config: TaskConfig) -> Scoring:
        """Returns the metrics of a run: the task's, unless `config` names others.

        The headline metric and the selecting one are always among them.

        Raises:
          UserError: `config` names a metric that is not in METRICS.
        """
        for name in config.metrics or ():
            _refuse_unknown(f"task.metrics={list(config.metrics or ())}: {name!r} is", name)
        if config.select is not None:
            _refuse_unknown(f"task.select={config.select!r}:", config.select)
        select = config.select or self.select
        names = (*(self.metrics if config.metrics is None else config.metrics), self.metric, select)
        return Scoring(tuple(dict.fromkeys(names)), self.metric, select)


def _refuse_unknown(setting: str, name: str) -> None:
    if name not in METRICS:
        raise UserError(f"{setting} not a metric; use {', '.join(METRICS)}")
