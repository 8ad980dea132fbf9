"""Masks tokens for masked language modelling, as BERT does (Devlin et al., arXiv 1810.04805, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64

from lora_jax.data.batches import Batch
from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHOSEN = 0.15  # of the tokens that are not special
MASKED, REPLACED = 0.8, 0.1  # of the chosen ones; the others stay as they are
MASKS = ("[MASK]", "<mask>")  # of BERT and DeBERTa, of RoBERTa

# The first number of a draw's key. Shuffling has 0 and 1 (batches.py).
_TRAINING, _EVALUATION = 2, 3


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that masking writes.

    Attributes:
      mask: the id of the mask token.
      special: the ids of special tokens, which are never chosen.
      ids: the ids of all tokens, one of which replaces a chosen token.
    """

    mask: int
    special: Int32[np.ndarray, " special"]
    ids: Int32[np.ndarray, " vocab"]

    @classmethod
    def of(cls, tokenizer: "Tokenizer", source: str) -> "Vocabulary":
        """Returns the vocabulary of the tokenizer of `source`; UserError if it has no mask token."""
        masks = [id for text in MASKS if (id := tokenizer.token_to_id(text)) is not None]
        if not masks:
            raise UserError(f"{source} has no mask token; this task needs one of {', '.join(MASKS)}")
        special = [id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        ids = sorted(tokenizer.get_vocab().values())
        return cls(masks[0], np.array(special, np.int32), np.array(ids, np.int32))


@dataclass(frozen=True, eq=False)
class MaskedTexts:
    """Tokenised texts, masked when they are read. It is an `EncodedSplit` (batches.py).

    Each token that is not special is chosen with probability 0.15. It becomes the mask with probability 0.8, any token
    with probability 0.1, and otherwise stays. Its label is the token that it was. The others are IGNORED.

    In training, what is drawn depends on the run's seed, the step, and the text's place in the batch alone. In
    evaluation it depends on the text's index alone, so all runs are always scored on the same tokens.
    """

    texts: Encoded
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def max_length(self) -> int:
        """No text is longer."""
        return self.texts.max_length

    @property
    def labels(self) -> Int32[np.ndarray, " tokens"]:
        """The tokens, those of each text after those of the text before."""
        return self.texts.tokens

    @property
    def no_label(self) -> int:
        """The label of a row that only fills a batch up."""
        return IGNORED

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """The number of tokens of each text."""
        return self.texts.lengths

    def padded(self, examples: Int[np.ndarray, "*batch"], length: int, pad_id: int) -> Batch:
        """Returns these texts, cut or padded on the right to `length`, masked as they always are in evaluation."""
        draws = np.array([_draw(length, _EVALUATION, int(example)) for example in examples.ravel()])
        return self._masked(self.texts.padded(examples, length, pad_id), draws.reshape(*examples.shape, length, 3))

    def drawn(
        self, examples: Int[np.ndarray, "runs batch"], length: int, pad_id: int, *, seeds: Sequence[int], step: int
    ) -> Batch:
        """Returns these texts to train on, masked anew."""
        places = range(examples.shape[1])
        by_seed = {
            seed: np.stack([_draw(length, _TRAINING, step, seed, place) for place in places]) for seed in set(seeds)
        }
        return self._masked(self.texts.padded(examples, length, pad_id), np.stack([by_seed[seed] for seed in seeds]))

    def _masked(self, batch: Batch, draws: Float64[np.ndarray, "*batch seq 3"]) -> Batch:
        words = self.vocabulary
        choice, action, token = np.moveaxis(draws, -1, 0)
        chosen = batch.mask & ~np.isin(batch.tokens, words.special) & (choice < CHOSEN)
        replacement = words.ids[(token * len(words.ids)).astype(int)]
        replaced = np.where(action < MASKED + REPLACED, replacement, batch.tokens)
        written = np.where(action < MASKED, np.int32(words.mask), replaced)
        return batch._replace(
            tokens=np.where(chosen, written, batch.tokens), labels=np.where(chosen, batch.tokens, np.int32(IGNORED))
        )


def _draw(length: int, *key: int) -> Float64[np.ndarray, "{length} 3"]:
    """Returns three numbers in [0, 1) for each token, fixed by `key`. Padding adds numbers at the end alone."""
    # From raw bits, because numpy may change what `random` draws.
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(3 * length)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(length, 3)
