"""Encodes the splits of a task for one base: texts as tokens, images as pixels."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lora_jax.config import RunConfig, TaskConfig
from lora_jax.data.batches import Buckets, EncodedSplit, EvalBatches, TrainBatches
from lora_jax.data.chats import Chats, make_chat_prompts, tokenize_chats
from lora_jax.data.examples import Examples, Split
from lora_jax.data.images import EncodedImages, Images
from lora_jax.data.masking import MaskedTexts, Vocabulary
from lora_jax.data.packing import pack
from lora_jax.data.prompts import Prompts, make_prompts
from lora_jax.data.sentence_pairs import RetrievalSplit, tokenize_documents, tokenize_tuples
from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tokens import Encoded, tokenize, tokenize_for_generation, tokenize_unlabelled, tokenize_words
from lora_jax.data.unlabelled import UnlabelledTexts
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from lora_jax.weights.load import Base

S = TypeVar("S", bound=Split)


@dataclass(frozen=True, eq=False)
class TaskTokens:
    """A task's data, encoded for a base.

    Attributes:
      data: what is encoded.
      scored: the examples of ``valid`` and ``test`` that are scored, and all of ``train``.
      encoded: the same, encoded.
      buckets: padded lengths that suit the data, for runs that name none.
      prompts: the prompts to generate from, if the task generates texts.
      packed: the examples to train on, several in a row, if ``task.packing`` asks for it.
      retrieval: the splits that are scored by retrieval, if the task has any.
    """

    data: TaskData[Any]
    scored: Mapping[str, Any]
    encoded: Mapping[str, EncodedSplit]
    buckets: tuple[int, ...]
    prompts: Prompts | None = None
    packed: Encoded | None = None
    retrieval: Mapping[str, RetrievalSplit] = field(default_factory=dict)

    def train_batches(self, run: RunConfig, seeds: tuple[int, ...]) -> TrainBatches:
        """Returns the training batches of runs like `run` with these seeds."""
        buckets = self.buckets_of(run)
        if self.packed is not None:
            return TrainBatches(self.packed, batch=run.batch, buckets=buckets[-1:], seeds=seeds)
        return TrainBatches(self.encoded["train"], batch=run.batch, buckets=buckets, seeds=seeds)

    def eval_batches(self, run: RunConfig, split: str) -> EvalBatches:
        """Returns the batches in which a split is scored."""
        encoded = self.encoded[split]
        return EvalBatches(encoded, batch=min(run.eval_batch, len(encoded)), buckets=self.buckets_of(run))

    def fingerprint(self, split: str) -> str:
        """Returns a SHA-256, in hex, that is the same for runs that are scored on the same examples of a split."""
        text = f"{self.data.fingerprint} {split} {len(self.encoded[split])}"
        return hashlib.sha256(text.encode()).hexdigest()

    def buckets_of(self, run: RunConfig) -> tuple[int, ...]:
        """Returns the padded lengths of `run`."""
        return run.task.buckets or self.buckets


@dataclass(frozen=True)
class Limits:
    """What is left out: tokens of an example beyond `max_length`, and examples to score beyond `eval_examples`.

    `augment` says how images to train on are varied.
    """

    max_length: int
    eval_examples: int | None
    augment: tuple[str, ...] = ()


def encode_task(task: Task, data: TaskData[Any], base: "Base", config: TaskConfig) -> TaskTokens:
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
    longest = max(config.buckets) if config.buckets else min(config.max_length, positions)
    tokens = ENCODERS[task.objective](data, base, Limits(longest, config.eval_examples, config.augment or ()))
    if not config.packing:
        return tokens
    train: Any = tokens.encoded["train"]
    if task.objective not in PACKABLE:
        raise UserError(f"task.packing=true: must be false for task={task.name}, which does not generate texts")
    return replace(tokens, packed=pack(train, (config.buckets or tokens.buckets)[-1]))


def encode_labelled(data: TaskData[Examples], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes texts, or pairs of texts, with a class or a number each."""
    types, scored = _reads_types(base), _scored_splits(data, limits)
    encoded = {name: tokenize(split, base.tokenizer, limits.max_length, types=types) for name, split in scored.items()}
    return TaskTokens(data, scored, encoded, suitable_buckets(encoded))


def encode_generation(data: TaskData[Examples], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes prompts with the texts to generate after them."""
    end, scored = end_of_text(base), _scored_splits(data, limits)
    encoded = {
        name: tokenize_for_generation(split, base.tokenizer, end, limits.max_length) for name, split in scored.items()
    }
    prompts = make_prompts(data.splits["test"], base.tokenizer, end, limits.eval_examples)
    return TaskTokens(data, scored, encoded, suitable_buckets(encoded), prompts)


def encode_chat(data: TaskData[Chats], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes conversations as the chat template of `base` writes them; the answers are to be generated."""
    end, scored = end_of_text(base), _scored_splits(data, limits)
    encoded = {
        name: tokenize_chats(split, base.tokenizer, base.special, limits.max_length, name)
        for name, split in scored.items()
    }
    prompts = make_chat_prompts(scored["test"], base.tokenizer, base.special, end, limits.max_length)
    return TaskTokens(data, scored, encoded, suitable_buckets(encoded), prompts)


def encode_images(data: TaskData[Images], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes images with a class each.

    Raises:
      UserError: the checkpoint's preprocessing makes images of another shape than its model reads.
    """
    scored = _scored_splits(data, limits)
    encoded = {name: EncodedImages(split, base.tokenizer, limits.augment) for name, split in scored.items()}
    shape = encoded["train"].padded(np.zeros(1, int), 1, 0).tokens.shape[1:]
    config = base.model.backbone.config
    if shape != (expected := (config.image_size, config.image_size, config.num_channels)):
        raise UserError(
            f"{base.source}: preprocessor_config.json makes images of the shape {shape}, and config.json says that the "
            f"model reads {expected}; they must be the same"
        )
    return TaskTokens(data, scored, encoded, (1,))


def encode_tuples(texts: int, data: TaskData, base: "Base", limits: Limits) -> TaskTokens:
    """Encodes examples whose texts are embedded one by one, `texts` in each training example, and documents."""
    scored = _scored_splits(data, limits)
    encoded = {name: tokenize_tuples(split, base.tokenizer, limits.max_length) for name, split in scored.items()}
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
    return TaskTokens(data, scored, encoded, suitable_buckets({**encoded, **documents}), retrieval=retrieval)


def encode_tagged_words(data: TaskData[TaggedWords], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes sentences with a tag for each word."""
    scored = _scored_splits(data, limits)
    encoded = {name: tokenize_words(split, base.tokenizer, limits.max_length) for name, split in scored.items()}
    return TaskTokens(data, scored, encoded, suitable_buckets(encoded))


def encode_masked(data: TaskData[UnlabelledTexts], base: "Base", limits: Limits) -> TaskTokens:
    """Encodes texts of which some tokens are masked."""
    vocabulary, scored = Vocabulary.of(base.tokenizer, base.source), _scored_splits(data, limits)
    encoded = {
        name: MaskedTexts(tokenize_unlabelled(split.texts, base.tokenizer, limits.max_length), vocabulary)
        for name, split in scored.items()
    }
    return TaskTokens(data, scored, encoded, suitable_buckets(encoded))


PACKABLE = ("generation", "chat")  # objectives whose models read segments

# By objective.
ENCODERS: dict[str, Callable[[TaskData[Any], "Base", Limits], TaskTokens]] = {
    "classification": encode_labelled,
    "regression": encode_labelled,
    "generation": encode_generation,
    "chat": encode_chat,
    "image_classification": encode_images,
    "similarity": functools.partial(encode_tuples, 2),
    "contrastive": functools.partial(encode_tuples, 2),
    "contrastive_triplets": functools.partial(encode_tuples, 3),
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


def _scored_splits(data: TaskData[S], limits: Limits) -> dict[str, S]:
    """Returns the splits, ``valid`` and ``test`` with the examples that are scored."""
    return {
        name: split if name == "train" else split.scored(limits.eval_examples) for name, split in data.splits.items()
    }


def _reads_types(base: "Base") -> bool:
    """Returns whether the model distinguishes the texts of a pair, as BERT does and RoBERTa does not."""
    config = getattr(base.model.backbone, "config", None)
    return getattr(config, "type_vocab_size", 0) > 1
