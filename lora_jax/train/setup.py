"""What the runs of a sweep have in common on the host: a base, a task, its texts as tokens."""

import dataclasses
import functools

from lora_jax.config import RunConfig
from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.tasks import Task, load_task
from lora_jax.data.tokens import Encoded, tokenize
from lora_jax.weights.load import Base, load_base


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A loaded base and task; `encoded` has the task's splits as tokens."""

    base: Base
    task: Task
    encoded: dict[str, Encoded]

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        return TrainBatches(self.encoded["train"], batch=run.batch, buckets=run.task.buckets, seeds=seeds)

    def eval_batches(self, run: RunConfig, split: str) -> EvalBatches:
        return EvalBatches(self.encoded[split], batch=run.eval_batch, buckets=run.task.buckets)


def setup_of(run: RunConfig) -> Setup:
    """The setup that `run` needs; loaded once, however many runs ask for it.

    Raises UserError as load_base and load_task do.
    """
    model, task = run.model, run.task
    # The task first: a missing data folder should not wait for a download.
    return _setup(task.name, task.data_dir, max(task.buckets), model.source, model.family, model.pool, run.dtype)


@functools.lru_cache(maxsize=2)
def _setup(name, data_dir, max_length, source, family, pool, dtype) -> Setup:
    task = load_task(name, data_dir)
    base = load_base(source, family, labels=len(task.labels), pool=pool, dtype=dtype)
    encoded = {split: tokenize(examples, base.tokenizer, max_length) for split, examples in task.splits.items()}
    return Setup(base, task, encoded)
