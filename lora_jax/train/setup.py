"""Setups: the base, the task and the encoded data that runs share."""

import dataclasses

from lora_jax.config import RunConfig
from lora_jax.data.batches import TrainBatches
from lora_jax.data.encoding import TaskTokens, encode_task
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks import find_task, load_data
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.sharding import put_parameter
from lora_jax.weights.load import Base, load_base


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A loaded base, and a task with its data, raw and encoded for the base."""

    base: Base
    task: Task
    data: TaskData
    tokens: TaskTokens

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        """Returns the training batches of runs like `run` with these seeds."""
        return self.tokens.train_batches(run, seeds)


def load_setup(run: RunConfig) -> Setup:
    """Loads the base and the task that `run` needs.

    Raises:
      UserError: as in `load_base` and `load_data`.
    """
    # The task comes first, so that a missing data folder is reported before the model is downloaded.
    task, data = find_task(run.task), load_data(run.task, run.data_root)
    objective = OBJECTIVES[task.objective]
    base = load_base(
        run.model.source,
        run.model.family,
        labels=objective.head_outputs(data.labels),
        pool=run.model.pool,
        dtype=run.dtype,
        base_storage=run.base_storage,
        head=objective.head,
        put=put_parameter,
    )
    max_length, eval_examples = max(run.task.buckets), run.task.eval_examples
    return Setup(base, task, data, encode_task(task, data, base, max_length=max_length, eval_examples=eval_examples))
