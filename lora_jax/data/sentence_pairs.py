"""Examples whose texts are encoded one by one: pairs with a score, anchors with positives, and documents to search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped

from lora_jax.data.examples import Examples
from lora_jax.data.tokens import Batch, Encoded, tokenize

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class EncodedTuples:
    """Tokenised examples of one text or more. The texts of an example are padded to one length.

    It is an `EncodedSplit` (batches.py), and its batches have tokens ``[*batch, texts, seq]``.

    Attributes:
      texts: the first texts of all examples, then the second ones, and so on. The first ones have the labels.
    """

    texts: tuple[Encoded, ...]

    def __len__(self) -> int:
        return len(self.texts[0])

    @property
    def max_length(self) -> int:
        """No text is longer."""
        return self.texts[0].max_length

    @property
    def labels(self) -> Shaped[np.ndarray, " examples"]:
        """The score or the group of each example."""
        return self.texts[0].labels

    @property
    def no_label(self) -> int:
        """The label of a row that only fills a batch up."""
        return self.texts[0].no_label

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """The number of tokens of the longest text of each example."""
        lengths: np.ndarray = np.max([text.lengths for text in self.texts], axis=0)
        return lengths

    @property
    def first(self) -> "EncodedTuples":
        """The same examples with their first text alone."""
        return EncodedTuples(self.texts[:1])

    def padded(self, examples: Int[np.ndarray, "*batch"], length: int, pad_id: int) -> Batch:
        """Returns these examples, each text cut or padded on the right to `length`."""
        parts = [text.padded(examples, length, pad_id) for text in self.texts]
        tokens, mask = (np.stack([getattr(part, name) for part in parts], axis=-2) for name in ("tokens", "mask"))
        return Batch(tokens, mask, parts[0].labels)

    def drawn(
        self, examples: Int[np.ndarray, "runs batch"], length: int, pad_id: int, *, seeds: Sequence[int], step: int
    ) -> Batch:
        """Returns these examples to train on. Nothing about them is random."""
        return self.padded(examples, length, pad_id)


@dataclass(frozen=True, eq=False)
class RetrievalSplit:
    """The queries and documents of a split, encoded, and which documents suit which query."""

    queries: EncodedTuples
    documents: EncodedTuples
    relevance: Float32[np.ndarray, "queries documents"]


def tokenize_tuples(examples: Examples, tokenizer: "Tokenizer", max_length: int) -> EncodedTuples:
    """Tokenises each text of the examples by itself: their texts, second texts and negatives, as far as they have them.

    Raises:
      UserError: as in `tokenize`.
    """
    columns = [texts for texts in (examples.texts, examples.pairs, examples.negatives) if texts is not None]
    return EncodedTuples(tuple(tokenize(Examples(texts, examples.labels), tokenizer, max_length) for texts in columns))


def tokenize_documents(documents: list[str], tokenizer: "Tokenizer", max_length: int) -> EncodedTuples:
    """Tokenises documents, which have no labels.

    Raises:
      UserError: as in `tokenize`.
    """
    return tokenize_tuples(Examples(documents, np.zeros(len(documents), np.int32)), tokenizer, max_length)
