"""Setups: the base, the task and the encoded data that runs share."""

import dataclasses
import json
from collections.abc import Sequence

from flax import nnx

from lora_jax.config import RunConfig
from lora_jax.data.batches import TrainBatches
from lora_jax.data.encoding import TaskTokens, encode_task
from lora_jax.data.pack_batches import PackBatches
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks import find_task, load_data
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.sharding import put_parameter
from lora_jax.weights.load import Base, load_base, with_labels


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A loaded base, and a task with its data, raw and encoded for the base."""

    base: Base
    task: Task
    data: TaskData
    tokens: TaskTokens

    @property
    def outputs(self) -> int | None:
        """The number of outputs of the task's head, or None if the checkpoint determines it."""
        return OBJECTIVES[self.task.objective].head_outputs(self.data.labels)

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        """Returns the training batches of runs like `run` with these seeds."""
        return self.tokens.train_batches(run, seeds)


def load_setup(run: RunConfig, base: Base | None = None) -> Setup:
    """Loads the task that `run` needs, and the base.

    Args:
      run: the settings.
      base: the base of `run`, if it is loaded already, with a head of the same kind for any number of labels.

    Raises:
      UserError: as in `load_base` and `load_data`, or the model reads images and the task has texts, or the reverse.
    """
    _refuse_other_inputs(run)
    # The task comes first, so that a missing data folder is reported before the model is downloaded.
    task, data = find_task(run.task), load_data(run.task, run.data_root)
    objective = OBJECTIVES[task.objective]
    outputs = objective.head_outputs(data.labels)
    if base is None:
        base = load_base(
            run.model.source,
            run.model.family,
            labels=outputs,
            pool=run.model.pool,
            dtype=run.dtype,
            base_storage=run.base_storage,
            head=objective.head,
            put=put_parameter,
        )
    elif outputs is not None:
        base = with_labels(base, outputs, put=put_parameter)
    return Setup(base, task, data, encode_task(task, data, base, run.task))


def _refuse_other_inputs(run: RunConfig) -> None:
    """Refuses, before anything is loaded, a task whose examples the model does not read."""
    task, family = find_task(run.task), FAMILIES.get(run.model.family)
    inputs = ("texts", "images")
    if family is not None and family.images != task.images:
        families = [name for name, row in FAMILIES.items() if row.images == task.images]
        raise UserError(
            f"model.family={run.model.family}: it reads {inputs[family.images]}, and task={task.name} has "
            f"{inputs[task.images]}; use a model of the family {' or '.join(families)}, or a task with "
            f"{inputs[family.images]}"
        )
    if run.task.augment and not task.images:
        raise UserError(f"task.augment={list(run.task.augment)}: must be null or empty, for task={task.name} has texts")


def group_by_task(runs: Sequence[RunConfig]) -> list[list[int]]:
    """Returns the places of the runs of each task. Runs of one task have the same data and the same batch lengths."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        key = json.dumps([run.task.static_settings(), run.data_root], sort_keys=True)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def pack_batches(setups: Sequence[Setup], runs: Sequence[RunConfig], one_length: bool = False) -> PackBatches:
    """Returns the training batches of a pack of these runs, with the setup of each.

    Args:
      setups: the setup of each run.
      runs: the runs.
      one_length: whether every batch is padded to the longest length.
    """
    groups = group_by_task(runs)
    parts = [
        setups[places[0]].train_batches(runs[places[0]], tuple(runs[place].seed for place in places))
        for places in groups
    ]
    return PackBatches(parts, groups, one_length)


def common_base(setups: Sequence[Setup]) -> nnx.Module:
    """Returns the base of runs that share one, with a head for the task with most outputs."""
    widest = max(setups, key=lambda setup: setup.outputs or 0)
    model: nnx.Module = widest.base.model
    return model
