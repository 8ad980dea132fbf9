"""What the runs of a sweep have in common on the host: a base, a task, its data as tokens."""

import dataclasses
import functools

from lora_jax.config import RunConfig
from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.encoding import TaskTokens, encode_task
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks import find_task, load_task
from lora_jax.train.objective import OBJECTIVES
from lora_jax.weights.load import Base, load_base


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A loaded base, a task and its data, raw and as tokens of the base."""

    base: Base
    task: Task
    data: TaskData
    tokens: TaskTokens

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        return self.tokens.train_batches(run, seeds)

    def eval_batches(self, run: RunConfig, split: str) -> EvalBatches:
        return self.tokens.eval_batches(run, split)


def setup_of(run: RunConfig) -> Setup:
    """Returns the setup that `run` needs, which is loaded once however many runs ask for it.

    Raises UserError as load_base and load_task do.
    """
    model, task = run.model, run.task
    # The task first: a missing data folder should not wait for a download.
    data = (task.name, task.data_dir, max(task.buckets), task.eval_examples)
    return _setup(*data, model.source, model.family, model.pool, run.dtype, run.base_storage)


@functools.lru_cache(maxsize=2)
def _setup(name, data_dir, max_length, eval_examples, source, family, pool, dtype, base_storage) -> Setup:
    task, data = find_task(name), load_task(name, data_dir)
    objective = OBJECTIVES[task.objective]
    labels = objective.head_outputs(data.labels)
    base = load_base(
        source, family, labels=labels, pool=pool, dtype=dtype, base_storage=base_storage, head=objective.head
    )
    tokens = encode_task(task, data, base, max_length=max_length, eval_examples=eval_examples)
    return Setup(base, task, data, tokens)
