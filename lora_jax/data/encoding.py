"""Tokenises the splits of a task for one base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_jax.config import RunConfig
from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.prompts import Prompts, make_prompts
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tokens import Encoded, tokenize, tokenize_for_generation
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from lora_jax.weights.load import Base


@dataclass(frozen=True, eq=False)
class TaskTokens:
    """A task's data as tokens.

    Attributes:
      encoded: the splits. ``train`` is whole; ``valid`` and ``test`` have the examples that are scored.
      prompts: the prompts to generate from, if the task generates texts.
    """

    encoded: Mapping[str, Encoded]
    prompts: Prompts | None = None

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        """Returns the training batches of runs like `run` with these seeds."""
        return TrainBatches(self.encoded["train"], batch=run.batch, buckets=run.task.buckets, seeds=seeds)

    def eval_batches(self, run: RunConfig, split: str) -> EvalBatches:
        """Returns the batches in which a split is scored."""
        encoded = self.encoded[split]
        return EvalBatches(encoded, batch=min(run.eval_batch, len(encoded)), buckets=run.task.buckets)


def encode_task(task: Task, data: TaskData, base: "Base", *, max_length: int, eval_examples: int | None) -> TaskTokens:
    """Tokenises every split of `data` for `base`.

    Args:
      task: determines whether an example has one label or is a text to generate.
      data: the loaded data of `task`.
      base: its tokenizer is used.
      max_length: longer examples are cut.
      eval_examples: at most so many examples of ``valid`` and ``test``; None for all.

    Raises:
      UserError: a text cannot be tokenised, or texts are to be generated and the base has no token that ends one.
    """
    splits = {name: split if name == "train" else _scored(split, eval_examples) for name, split in data.splits.items()}
    if task.objective != "generation":
        types = _reads_types(base)
        return TaskTokens(
            {name: tokenize(split, base.tokenizer, max_length, types=types) for name, split in splits.items()}
        )
    if not base.special.eos:
        raise UserError(f"{base.source} names no token that ends a text, and task={task.name} generates texts")
    end = base.special.eos[0]
    encoded = {name: tokenize_for_generation(split, base.tokenizer, end, max_length) for name, split in splits.items()}
    return TaskTokens(encoded, make_prompts(data.splits["test"], base.tokenizer, end, eval_examples))


def _reads_types(base: "Base") -> bool:
    """Returns whether the model distinguishes the texts of a pair, as BERT does and RoBERTa does not."""
    config = getattr(base.model.backbone, "config", None)
    return getattr(config, "type_vocab_size", 0) > 1


def _scored(examples: Examples, limit: int | None) -> Examples:
    """Returns the first `limit` examples. A text with several references to generate counts once, with its first."""
    rows: Sequence[int] = range(len(examples))
    if isinstance(examples.labels, list):
        rows = sorted({text: i for i, text in reversed(list(enumerate(examples.texts)))}.values())
    return examples.take(rows[:limit])
