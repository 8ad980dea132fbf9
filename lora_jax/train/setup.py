"""What the runs of a sweep have in common on the host: a base, a task, its texts as tokens."""

import dataclasses
from collections.abc import Sequence

from lora_jax.config import RunConfig
from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.prompts import Prompts, prompts_of
from lora_jax.data.tasks import Task, load_task
from lora_jax.data.tokens import Encoded, tokenize, tokenize_pairs
from lora_jax.errors import UserError
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.sharding import put_parameter
from lora_jax.weights.load import Base, load_base


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A loaded base and task; `encoded` has the task's splits as tokens, `prompts` what there is to write for."""

    base: Base
    task: Task
    encoded: dict[str, Encoded]
    prompts: Prompts | None  # where the task is to write

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        return TrainBatches(self.encoded["train"], batch=run.batch, buckets=run.task.buckets, seeds=seeds)

    def eval_batches(self, run: RunConfig, split: str) -> EvalBatches:
        encoded = self.encoded[split]
        return EvalBatches(encoded, batch=min(run.eval_batch, len(encoded)), buckets=run.task.buckets)


def setup_key(run: RunConfig) -> tuple[object, ...]:
    """Returns what a setup depends on: the same for runs that can share one."""
    model, task = run.model, run.task
    data = (task.name, task.data_dir, max(task.buckets), task.eval_examples)
    return (*data, model.source, model.family, model.pool, run.dtype, run.base_storage)


def load_setup(run: RunConfig) -> Setup:
    """Loads the base and the task that `run` needs. Raises UserError as load_base and load_task do."""
    model, max_length, most = run.model, max(run.task.buckets), run.task.eval_examples
    # The task first: a missing data folder should not wait for a download.
    task = load_task(run.task.name, run.task.data_dir)
    head = OBJECTIVES[task.kind].head
    labels = len(task.labels) or None
    base = load_base(
        model.source,
        model.family,
        labels=labels,
        pool=model.pool,
        dtype=run.dtype,
        base_storage=run.base_storage,
        head=head,
        put=put_parameter,
    )
    splits = {name: split if name == "train" else _scored(split, most) for name, split in task.splits.items()}
    if head == "classifier":
        encoded = {name: tokenize(split, base.tokenizer, max_length) for name, split in splits.items()}
        return Setup(base, task, encoded, None)
    if not base.special.eos:
        raise UserError(
            f"{model.source} names no token that ends a text, and task={task.name} has to know when one is over"
        )
    end = base.special.eos[0]
    encoded = {name: tokenize_pairs(split, base.tokenizer, end, max_length) for name, split in splits.items()}
    return Setup(base, task, encoded, prompts_of(task.splits["test"], base.tokenizer, end, most))


def _scored(examples: Examples, most: int | None) -> Examples:
    """What a split is scored on: of a text that has several references, the first; the first `most` texts."""
    rows: Sequence[int] = range(len(examples))
    if isinstance(examples.labels, list):
        rows = sorted({text: i for i, text in reversed(list(enumerate(examples.texts)))}.values())
    return examples.take(rows[:most])
