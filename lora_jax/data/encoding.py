"""Encodes the splits of a task for one base: texts as tokens, images as pixels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_jax.config import RunConfig, TaskConfig
from lora_jax.data.batches import Buckets, EncodedSplit, EvalBatches, TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.masking import MaskedTexts, Vocabulary
from lora_jax.data.prompts import Prompts, make_prompts
from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.task import SplitT, Task, TaskData
from lora_jax.data.tokens import tokenize, tokenize_for_generation, tokenize_unlabelled, tokenize_words
from lora_jax.data.unlabelled import UnlabelledTexts
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
    """

    data: TaskData
    encoded: Mapping[str, EncodedSplit]
    buckets: tuple[int, ...]
    prompts: Prompts | None = None

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


def encode_labelled(data: TaskData[Examples], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes texts, or pairs of texts, with a class or a number each."""
    types = _reads_types(base)
    encoded = {
        name: tokenize(split, base.tokenizer, limits.max_length, types=types)
        for name, split in _scored_splits(data, limits).items()
    }
    return TaskTokens(data, encoded, suitable_buckets(encoded))


def encode_generation(data: TaskData[Examples], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes prompts with the texts to generate after them."""
    end = end_of_text(base)
    encoded = {
        name: tokenize_for_generation(split, base.tokenizer, end, limits.max_length)
        for name, split in _scored_splits(data, limits).items()
    }
    prompts = make_prompts(data.splits["test"], base.tokenizer, end, limits.eval_examples)
    return TaskTokens(data, encoded, suitable_buckets(encoded), prompts)


def encode_tagged_words(data: TaskData[TaggedWords], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes sentences with a tag for each word."""
    encoded = {
        name: tokenize_words(split, base.tokenizer, limits.max_length)
        for name, split in _scored_splits(data, limits).items()
    }
    return TaskTokens(data, encoded, suitable_buckets(encoded))


def encode_masked(data: TaskData[UnlabelledTexts], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes texts of which some tokens are masked."""
    vocabulary = Vocabulary.of(base.tokenizer, base.source)
    encoded = {
        name: MaskedTexts(tokenize_unlabelled(split.texts, base.tokenizer, limits.max_length), vocabulary)
        for name, split in _scored_splits(data, limits).items()
    }
    return TaskTokens(data, encoded, suitable_buckets(encoded))


# By objective.
ENCODERS: dict[str, Callable[[TaskData, "Base", Limits], TaskTokens]] = {
    "classification": encode_labelled,
    "regression": encode_labelled,
    "generation": encode_generation,
    "token_classification": encode_tagged_words,
    "masked_lm": encode_masked,
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


def _scored_splits(data: TaskData[SplitT], limits: Limits) -> dict[str, SplitT]:
    """Returns the splits, ``valid`` and ``test`` with the examples that are scored."""
    return {
        name: split if name == "train" else split.scored(limits.eval_examples) for name, split in data.splits.items()
    }


def _reads_types(base: "Base") -> bool:
    """Returns whether the model distinguishes the texts of a pair, as BERT does and RoBERTa does not."""
    config = getattr(base.model.backbone, "config", None)
    return getattr(config, "type_vocab_size", 0) > 1
