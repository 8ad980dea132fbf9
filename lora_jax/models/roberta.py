"""RoBERTa (Liu et al., arXiv 1907.11692): BERT's blocks with other positions, one token type and no pooler."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models import bert
from lora_jax.models.fields import Count, Layers, Positive, Size
from lora_jax.models.layers import stack_layers


@dataclasses.dataclass(frozen=True)
class RobertaConfig(bert.BertConfig):
    """BERT's keys and `pad_token_id`. The defaults are those of ``FacebookAI/roberta-base``."""

    vocab_size: Size = 50265
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 514
    type_vocab_size: Size = 1
    layer_norm_eps: Positive = 1e-5
    pad_token_id: Count = 1

    def __post_init__(self):
        super().__post_init__()
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id={self.pad_token_id}: must be below vocab_size={self.vocab_size}")
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings}: must be above pad_token_id + 1, which is "
                f"{self.pad_token_id + 1}"
            )

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens in a text: tokens do not use the positions up to the padding's id."""
        return self.max_position_embeddings - self.pad_token_id - 1


class Roberta(bert.Bert):
    """Maps token ids to hidden states."""

    config: RobertaConfig

    def __init__(self, config: RobertaConfig):
        self.embed = bert.Embeddings(config)
        self.layers = stack_layers(lambda: bert.Block(config), config.num_hidden_layers)
        self.virtual: Any = nnx.data(None)
        self.config = config

    def positions(self, mask: Bool[Array, "batch seq"]) -> Int[Array, "batch seq"]:
        """Returns, for each token, the number of unmasked tokens before it, plus the padding's id, plus one.

        fairseq and ``transformers`` count the tokens that are not the padding token. That is the same number where
        the mask is False at that token alone.
        """
        return jnp.cumsum(mask, axis=-1, dtype=jnp.int32) * mask + self.config.pad_token_id

    def pool_first(self, hidden: Float[Array, "batch seq d_model"]) -> Float[Array, "batch d_model"]:
        """Returns the state of the first token, <s>. The classifier's head applies a dense layer to it."""
        return hidden[:, 0]


# bert.py explains these tables.
NAMES = {name: path for name, path in bert.NAMES.items() if not path.startswith("pooler/")}
PREFIXES = ("", "roberta.")
IGNORED = (
    r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",
    r"(roberta\.)?pooler\..*",  # no head uses it
    r"lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
FIXED = bert.FIXED
