"""What a model is given to write from, once the training is over."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32

from lora_jax.data.examples import Examples
from lora_jax.data.tokens import prompts
from lora_jax.generate.text import left_pad

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Prompts are padded to a multiple of this, so that few lengths compile.
MULTIPLE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """The different texts of a split, in their order, with all references of each; `tokens` are padded on the left."""

    texts: list[str]
    references: list[list[str]]
    tokens: Int32[np.ndarray, "prompts length"]
    mask: Bool[np.ndarray, "prompts length"]

    def __len__(self) -> int:
        return len(self.texts)

    def batches(
        self, batch: int
    ) -> Iterator[tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]]:
        """(tokens, mask), at most `batch` prompts at a time; the last one comes again where they do not fill it."""
        batch = min(batch, len(self))
        for start in range(0, len(self), batch):
            rows = np.minimum(np.arange(start, start + batch), len(self) - 1)
            yield self.tokens[rows], self.mask[rows]


def prompts_of(examples: Examples, tokenizer: "Tokenizer", pad: int, most: int | None = None) -> Prompts:
    """The prompts of a split whose labels are texts to be written; the first `most` of them."""
    references: dict[str, list[str]] = {}
    for text, reference in zip(examples.texts, examples.labels, strict=True):
        references.setdefault(text, []).append(reference)
    references = dict(list(references.items())[:most])
    tokens, mask = left_pad(prompts(list(references), tokenizer), pad)
    width = [(0, 0), (-tokens.shape[1] % MULTIPLE, 0)]
    return Prompts(
        list(references), list(references.values()), np.pad(tokens, width, constant_values=pad), np.pad(mask, width)
    )
