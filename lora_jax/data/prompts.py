"""The prompts that a trained model generates texts from, and their references."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32

from lora_jax.data.examples import Examples
from lora_jax.data.tokens import left_pad, tokenize_prompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Prompts are padded to a multiple of this, so that few lengths are compiled.
MULTIPLE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """The distinct texts of a split, in order, with all references of each. `tokens` are padded on the left."""

    texts: list[str]
    references: list[list[str]]
    tokens: Int32[np.ndarray, "prompts seq"]
    mask: Bool[np.ndarray, "prompts seq"]

    def __len__(self) -> int:
        return len(self.texts)

    def batches(self, batch: int) -> Iterator[tuple[Int32[np.ndarray, "batch seq"], Bool[np.ndarray, "batch seq"]]]:
        """Yields (tokens, mask) of at most `batch` prompts at a time; the last prompt is repeated to fill a batch."""
        batch = min(batch, len(self))
        for start in range(0, len(self), batch):
            rows = np.minimum(np.arange(start, start + batch), len(self) - 1)
            yield self.tokens[rows], self.mask[rows]


def make_prompts(examples: Examples, tokenizer: "Tokenizer", pad: int, limit: int | None = None) -> Prompts:
    """Returns the prompts of a split whose labels are texts to generate, at most the first `limit` of them."""
    references: dict[str, list[str]] = {}
    for text, reference in zip(examples.texts, examples.labels, strict=True):
        references.setdefault(text, []).append(reference)
    references = dict(list(references.items())[:limit])
    rows = tokenize_prompts(list(references), tokenizer)
    return pad_prompts(list(references), list(references.values()), rows, pad)


def pad_prompts(texts: list[str], references: list[list[str]], rows: Sequence[Sequence[int]], pad: int) -> Prompts:
    """Returns prompts, of which `rows` are the tokens, padded to a multiple of MULTIPLE."""
    tokens, mask = left_pad(rows, pad)
    width = [(0, 0), (-tokens.shape[1] % MULTIPLE, 0)]
    return Prompts(texts, references, np.pad(tokens, width, constant_values=pad), np.pad(mask, width))
