"""Tasks: their objective, metrics and data."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import numpy as np
from typing_extensions import TypeVar

from lora_jax.config import TaskConfig
from lora_jax.data.examples import Corpus, Examples, Split
from lora_jax.errors import UserError
from lora_jax.metrics import METRICS, Scoring

S = TypeVar("S", bound=Split, default=Examples)


@dataclass(frozen=True, eq=False)
class TaskData(Generic[S]):
    """The loaded data of a task: texts, or images (``TaskData[Images]``), conversations.

    `labels` names the classes; it is empty if they have no names, or there are none. `splits` has ``train``, ``valid``
    and ``test``. `corpora` has the documents in which the texts of a split are searched, for the splits that are scored
    by retrieval. Raises UserError if an example is of a class that `labels` does not name.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, S]
    corpora: Mapping[str, Corpus] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            classes = np.asarray(split.labels)
            if (
                self.labels
                and classes.dtype == np.int32
                and not set(np.unique(classes)) <= set(range(len(self.labels)))
            ):
                raise UserError(
                    f"the {name} split has labels from {classes.min()} to {classes.max()}; expected 0 to "
                    f"{len(self.labels) - 1}, of {len(self.labels)} classes"
                )

    def validate_on_test(self) -> "TaskData[S]":
        """Returns the data with the test split as ``valid`` too, and the examples of ``valid`` at the end of ``train``.

        Raises ValueError if a split is searched in documents, which cannot be joined.
        """
        if self.corpora:
            raise ValueError("splits with corpora cannot be joined")
        train, valid, test = (self.splits[name] for name in ("train", "valid", "test"))
        return TaskData(self.labels, {"train": train.join(valid), "valid": test, "test": test})

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the label names and every split's examples and documents, in order."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in sorted(self.splits.items()):
            corpus = [self.corpora[name].documents, self.corpora[name].relevant] if name in self.corpora else []
            digest.update(json.dumps([name, *split.content(), *corpus]).encode())
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
    objective: str
    evaluators: tuple[str, ...]
    metrics: tuple[str, ...]
    metric: str
    select: str
    load: Callable[[Path | None], TaskData[Any]]
    folder: str = ""

    @property
    def images(self) -> bool:
        """Whether the examples are images instead of texts."""
        return self.objective == "image_classification"

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
