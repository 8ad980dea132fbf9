"""RoBERTa (Liu et al., arXiv 1907.11692): BERT's blocks, other positions, one token type, no pooler of its own."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models import bert
from lora_jax.models.layers import stack


@dataclasses.dataclass(frozen=True)
class RobertaConfig(bert.BertConfig):
    """The defaults are those of ``FacebookAI/roberta-base``."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1

    @property
    def longest(self) -> int:
        """The most tokens of a text: positions up to the padding's own are not for tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1


class Roberta(bert.Bert):
    """Token ids to hidden states."""

    config: RobertaConfig

    def __init__(self, config: RobertaConfig):
        self.embed = bert.Embeddings(config)
        self.layers = stack(lambda: bert.Block(config), config.num_hidden_layers)
        self.config = config

    def positions(self, mask: Bool[Array, "batch tokens"]) -> Int[Array, "batch tokens"]:
        """How many unmasked tokens stand before a token, plus the padding's id, plus one.

        (fairseq and ``transformers`` count what is not the padding token, which is the same where the mask is True
        just there.)
        """
        return jnp.cumsum(mask, axis=-1, dtype=jnp.int32) * mask + self.config.pad_token_id

    def pool_first(self, hidden: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """The first token, <s>, as it is; the head has a dense layer of its own for it."""
        return hidden[:, 0]


# The tables are explained in bert.py.
NAMES = {name: path for name, path in bert.NAMES.items() if not path.startswith("pooler/")}
PREFIXES = ("", "roberta.")
IGNORED = (
    r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",
    r"(roberta\.)?pooler\..*",  # no task's head uses it
    r"lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
FIXED = bert.FIXED
