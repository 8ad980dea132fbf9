"""Tokenises texts with the `tokenizers` library."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from lora_jax.data.examples import Examples
from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.text import is_utf8
from lora_jax.errors import UserError, shown

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# The label of a token that has none.
IGNORED = -1
# Stands between a prompt and the text to generate.
SEPARATOR = "\n"


class Batch(NamedTuple):
    """Padded examples, with any leading axes: ``[runs, batch]`` in training, ``[batch]`` in evaluation.

    If the texts of an example are encoded one by one, tokens and mask have an axis of texts before `seq`.
    """

    tokens: Int32[np.ndarray, "*batch seq"]
    mask: Bool[np.ndarray, "*batch seq"]  # True at tokens, False at padding
    # A class or a value for each example, or a class for each token.
    labels: Int32[np.ndarray, "*batch"] | Float32[np.ndarray, "*batch"] | Int32[np.ndarray, "*batch seq"]
    types: Int32[np.ndarray, "*batch seq"] | None = None  # which text of a pair a token belongs to: 0 or 1
    segments: Int32[np.ndarray, "*batch seq"] | None = None  # which sequence of a packed row it belongs to, from 1


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised examples, concatenated: example i is ``tokens[offsets[i] : offsets[i + 1]]``.

    It is an `EncodedSplit` (batches.py). Every example has 1 to `max_length` tokens. It has one label or, with
    `by_token`, one for each token, and those are laid out as `tokens` is. So are `types`, the token type ids, which
    only pairs have.
    """

    tokens: Int32[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " examples+1"]
    labels: Int32[np.ndarray, " examples"] | Float32[np.ndarray, " examples"] | Int32[np.ndarray, " tokens"]
    max_length: int
    by_token: bool = False
    types: Int32[np.ndarray, " tokens"] | None = None
    segments: Int32[np.ndarray, " tokens"] | None = None  # where several sequences are packed into an example

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """The number of tokens of each example."""
        return np.diff(self.offsets)

    def __getitem__(self, i: int) -> Int32[np.ndarray, " seq"]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def no_label(self) -> int:
        """The label of a row that only fills a batch up."""
        return IGNORED if self.by_token else 0

    def drawn(
        self, examples: Int[np.ndarray, "runs batch"], length: int, pad_id: int, *, seeds: Sequence[int], step: int
    ) -> Batch:
        """Returns these examples to train on. Nothing about them is random."""
        return self.padded(examples, length, pad_id)

    def padded(self, examples: Int[np.ndarray, "*batch"], length: int, pad_id: int) -> Batch:
        """Returns these examples, cut or padded on the right to `length`."""
        places = self.offsets[examples][..., None] + np.arange(length)
        mask = places < self.offsets[examples + 1][..., None]

        def pad(values: Int32[np.ndarray, " tokens"], fill: int) -> Int32[np.ndarray, "*batch seq"]:
            return np.where(mask, values.take(places, mode="clip"), np.int32(fill))

        return Batch(
            tokens=pad(self.tokens, pad_id),
            mask=mask,
            labels=pad(self.labels, IGNORED) if self.by_token else self.labels[examples],
            types=None if self.types is None else pad(self.types, 0),
            segments=None if self.segments is None else pad(self.segments, 0),
        )


def tokenize(examples: Examples, tokenizer: "Tokenizer", max_length: int, *, types: bool = False) -> Encoded:
    """Tokenises examples with a label each, special tokens included, cut to `max_length` tokens.

    The texts of a pair are tokenised as one sequence, as the tokenizer joins them; the longer one is cut first. The
    tokenizer's own settings of truncation and padding are ignored, and it is not changed.

    Args:
      examples: texts, or pairs of texts, with int32 or float32 labels.
      tokenizer: of the model that reads the tokens.
      max_length: at most so many tokens for each example.
      types: whether the model distinguishes the two texts of a pair. The token type ids are kept only if so, and only
        if the tokenizer sets any of them.

    Raises:
      UserError: `max_length` leaves no room for a text beside the special tokens, or a text has no token at all, or
        has a lone surrogate.
    """
    _check_room(tokenizer, max_length, pairs=examples.pairs is not None)
    texts = examples.texts if examples.pairs is None else list(zip(examples.texts, examples.pairs, strict=True))
    encodings = _encode(tokenizer, texts, max_length)
    rows = [encoding.ids for encoding in encodings]
    _check_tokens(rows, texts)
    type_ids = _flat([encoding.type_ids for encoding in encodings]) if types and examples.pairs is not None else None
    if type_ids is not None and not type_ids.any():
        type_ids = None
    return Encoded(_flat(rows), _offsets(rows), np.asarray(examples.labels), max_length, types=type_ids)


def tokenize_unlabelled(texts: Sequence[str], tokenizer: "Tokenizer", max_length: int) -> Encoded:
    """Tokenises texts as `tokenize` does. All labels are 0."""
    return tokenize(Examples(list(texts), np.zeros(len(texts), np.int32)), tokenizer, max_length)


def tokenize_words(sentences: TaggedWords, tokenizer: "Tokenizer", max_length: int) -> Encoded:
    """Tokenises sentences whose words are given, special tokens included, cut to `max_length` tokens.

    A word's tag is the label of its first token, and the other tokens are IGNORED, as in the script run_ner.py of
    transformers. So a word that is cut off, or that the tokenizer drops, has no label. A word never joins the one
    before it: where the tokenizer marks the space before a word, every word has one.

    Raises:
      UserError: `max_length` leaves no room for a word beside the special tokens, or a sentence has no token at all,
        or has a lone surrogate.
    """
    _check_room(tokenizer, max_length, pairs=False)
    encodings = _encode(tokenizer, sentences.words, max_length, pretokenized=True)
    rows = [encoding.ids for encoding in encodings]
    _check_tokens(rows, sentences.words)
    labels = []
    for encoding, tags in zip(encodings, sentences.tags, strict=True):
        word_ids = [None, *encoding.word_ids]
        labels.append(
            [IGNORED if word is None or word == before else tags[word] for before, word in itertools.pairwise(word_ids)]
        )
    return Encoded(_flat(rows), _offsets(rows), _flat(labels), max_length, by_token=True)


def tokenize_for_generation(examples: Examples, tokenizer: "Tokenizer", end: int, max_length: int) -> Encoded:
    """Tokenises the examples of a causal language model: each prompt, SEPARATOR, and the text to generate.

    The label of a token is the token after it if that belongs to the text to generate, `end` for the last token, and
    otherwise IGNORED. Prompt and reference are tokenised separately, so that a prompt has the same tokens alone
    (`tokenize_prompts`). An example longer than `max_length` is cut at its end.

    Raises:
      UserError: a prompt is longer than `max_length`.
    """
    if examples.pairs is not None:
        raise ValueError("a text is generated from a single text, not from a pair")
    prompts = tokenize_prompts(examples.texts, tokenizer)
    references = [encoding.ids for encoding in _encode(tokenizer, list(examples.labels), special_tokens=False)]
    rows, labels = [], []
    for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        if not 0 < len(prompt) <= max_length:
            raise UserError(
                f"task.buckets: text {i} ({shown(examples.texts[i])}) has {len(prompt)} tokens, and the longest "
                f"bucket is {max_length}; must hold every text"
            )
        rows.append([*prompt, *reference][:max_length])
        labels.append([*[IGNORED] * (len(prompt) - 1), *reference, end][:max_length])
    return Encoded(_flat(rows), _offsets(rows), _flat(labels), max_length, by_token=True)


def tokenize_prompts(texts: Sequence[str], tokenizer: "Tokenizer") -> list[list[int]]:
    """Returns the tokens of each prompt: leading special tokens, the text, SEPARATOR."""
    return [encoding.ids for encoding in _encode(tokenizer, [text + SEPARATOR for text in texts])]


def left_pad(
    rows: Sequence[Sequence[int]], pad: int
) -> tuple[Int32[np.ndarray, "batch seq"], Bool[np.ndarray, "batch seq"]]:
    """Returns (tokens, mask) of prompts, padded on the left so that they all end in the last column."""
    length = max(map(len, rows))
    tokens = np.array([[pad] * (length - len(row)) + list(row) for row in rows], np.int32)
    return tokens, np.arange(length) >= length - np.array([len(row) for row in rows])[:, None]


def _check_room(tokenizer: "Tokenizer", max_length: int, *, pairs: bool) -> None:
    special = tokenizer.num_special_tokens_to_add(is_pair=pairs)
    if max_length <= special:
        raise UserError(f"max_length={max_length}: the tokenizer adds {special} special tokens; must be more")


def _check_tokens(rows: Sequence[Sequence[int]], texts: Sequence[str] | Sequence[Sequence[str]]) -> None:
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise UserError(f"text {empty[0]} ({shown(''.join(texts[empty[0]]))}) has no token")


def _encode(
    tokenizer: "Tokenizer",
    texts: Sequence[str] | Sequence[Sequence[str]],
    max_length: int | None = None,
    special_tokens: bool = True,
    pretokenized: bool = False,
) -> list["Encoding"]:
    copy = tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    if max_length is None:
        copy.no_truncation()
    else:
        copy.enable_truncation(max_length)
    if pretokenized and hasattr(copy.pre_tokenizer, "add_prefix_space"):
        copy.pre_tokenizer.add_prefix_space = True
    # The fast one does not say which word a token is of.
    encode = copy.encode_batch if pretokenized else copy.encode_batch_fast
    try:
        encodings: list[Encoding] = encode(texts, is_pretokenized=pretokenized, add_special_tokens=special_tokens)
    except TypeError:  # raised for lone surrogates too
        broken = [i for i, text in enumerate(texts) if not is_utf8("".join(text))]
        if not broken:
            raise
        raise UserError(
            f"text {broken[0]} ({shown(''.join(texts[broken[0]]))}) has a lone surrogate; expected Unicode"
        ) from None
    return encodings


def _offsets(rows: Sequence[Sequence[int]]) -> Int64[np.ndarray, " examples+1"]:
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)


def _flat(rows: Sequence[Sequence[int]]) -> Int32[np.ndarray, " tokens"]:
    return np.array([token for row in rows for token in row], np.int32)
