"""Encodes the splits of a task for one base: texts as tokens, images as pixels."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lora_jax.config import RunConfig, TaskConfig
from lora_jax.data.batches import Buckets, EncodedSplit, EvalBatches, TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.prompts import Prompts, make_prompts
from lora_jax.data.sentence_pairs import RetrievalSplit, tokenize_documents, tokenize_tuples
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tokens import tokenize, tokenize_for_generation
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from lora_jax.weights.load import Base


@dataclass(frozen=True, eq=False)
class TaskTokens:
    """A task's data, encoded for a base.

    Attributes:
      data: what is encoded.
      encoded: the splits. ``train`` is whole; ``valid`` and ``test`` have the examples that are scored.
      buckets: padded lengths that suit the data, for runs that name none.
      prompts: the prompts to generate from, if the task generates texts.
      retrieval: the splits that are scored by retrieval, if the task has any.
    """

    data: TaskData
    encoded: Mapping[str, EncodedSplit]
    buckets: tuple[int, ...]
    prompts: Prompts | None = None
    retrieval: Mapping[str, RetrievalSplit] = field(default_factory=dict)

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        """Returns the training batches of runs like `run` with these seeds."""
        return TrainBatches(self.encoded["train"], batch=run.batch, buckets=self.buckets_of(run), seeds=seeds)

    def eval_batches(self, run: RunConfig, split: str) -> EvalBatches:
        """Returns the batches in which a split is scored."""
        encoded = self.encoded[split]
        return EvalBatches(encoded, batch=min(run.eval_batch, len(encoded)), buckets=self.buckets_of(run))

    def buckets_of(self, run: RunConfig) -> tuple[int, ...]:
        """Returns the padded lengths of `run`."""
        return run.task.buckets or self.buckets


@dataclass(frozen=True)
class Limits:
    """What is left out: tokens of an example beyond `max_length`, and examples to score beyond `eval_examples`."""

    max_length: int
    eval_examples: int | None


def encode_task(task: Task, data: TaskData, base: "Base", config: TaskConfig) -> TaskTokens:
    """Encodes every split of `data` for `base`.

    Args:
      task: its objective determines what an example is.
      data: the loaded data of `task`.
      base: its tokenizer is used.
      config: longer examples than its longest bucket are cut; without buckets, than its `max_length` or the model's.

    Raises:
      UserError: a text cannot be tokenised, or texts are to be generated and the base has no token that ends one.
    """
    positions = getattr(getattr(base.model.backbone, "config", None), "max_tokens", None) or config.max_length
    limits = Limits(max(config.buckets) if config.buckets else min(config.max_length, positions), config.eval_examples)
    return ENCODERS[task.objective](data, base, limits)


def encode_labelled(data: TaskData, base: "Base", limits: Limits) -> TaskTokens:
    """Encodes texts, or pairs of texts, with a class or a number each."""
    types = _reads_types(base)
    encoded = {
        name: tokenize(split, base.tokenizer, limits.max_length, types=types)
        for name, split in _scored_splits(data, limits).items()
    }
    return TaskTokens(data, encoded, suitable_buckets(encoded))


def encode_generation(data: TaskData, base: "Base", limits: Limits) -> TaskTokens:
    """Encodes prompts with the texts to generate after them."""
    end = end_of_text(base)
    encoded = {
        name: tokenize_for_generation(split, base.tokenizer, end, limits.max_length)
        for name, split in _scored_splits(data, limits).items()
    }
    prompts = make_prompts(data.splits["test"], base.tokenizer, end, limits.eval_examples)
    return TaskTokens(data, encoded, suitable_buckets(encoded), prompts)


def encode_tuples(texts: int, data: TaskData, base: "Base", limits: Limits) -> TaskTokens:
    """Encodes examples whose texts are embedded one by one, `texts` in each training example, and documents."""
    encoded = {
        name: tokenize_tuples(split, base.tokenizer, limits.max_length)
        for name, split in _scored_splits(data, limits).items()
    }
    if len(encoded["train"].texts) != texts:
        raise ValueError(f"training examples of {len(encoded['train'].texts)} texts; the objective reads {texts}")
    retrieval = {
        name: RetrievalSplit(
            encoded[name].first,
            tokenize_documents(corpus.documents, base.tokenizer, limits.max_length),
            corpus.relevance(len(encoded[name])),
        )
        for name, corpus in data.corpora.items()
    }
    documents = {f"{name} documents": split.documents for name, split in retrieval.items()}
    return TaskTokens(data, encoded, suitable_buckets({**encoded, **documents}), retrieval=retrieval)


# By objective.
ENCODERS: dict[str, Callable[[TaskData, "Base", Limits], TaskTokens]] = {
    "classification": encode_labelled,
    "regression": encode_labelled,
    "generation": encode_generation,
    "similarity": functools.partial(encode_tuples, 2),
    "contrastive": functools.partial(encode_tuples, 2),
    "contrastive_triplets": functools.partial(encode_tuples, 3),
}


def suitable_buckets(encoded: Mapping[str, EncodedSplit]) -> tuple[int, ...]:
    """Returns padded lengths that suit the lengths of all splits."""
    splits = list(encoded.values())
    lengths = np.concatenate([split.lengths for split in splits])
    return Buckets.chosen(lengths, max(split.max_length for split in splits)).lengths


def end_of_text(base: "Base") -> int:
    """Returns the token with which `base` ends a text; UserError if it names none."""
    if not base.special.eos:
        raise UserError(f"{base.source} names no token that ends a text, and this task generates texts")
    return base.special.eos[0]


def _scored_splits(data: TaskData, limits: Limits) -> dict[str, Examples]:
    """Returns the splits, ``valid`` and ``test`` with the examples that are scored."""
    return {
        name: split if name == "train" else _scored(split, limits.eval_examples) for name, split in data.splits.items()
    }


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
