"""Language modelling on a decoder: hidden states to the next token's logits."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.layers import Linear


class CausalLM(nnx.Module):
    """A decoder with its vocabulary on top: the embedding's transpose where they are tied, else its own `lm_head`.

    The backbone's config says which (`tie_word_embeddings`), and whether logits are softly capped
    (`final_logit_softcapping`, Gemma 2). A LoRA on a tied embedding adapts the lookup alone, as in PEFT.
    """

    def __init__(self, backbone: Any):
        config = backbone.config
        self.backbone = backbone
        self.lm_head = (
            nnx.data(None) if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.tied = "backbone/embed" if config.tie_word_embeddings else None
        self.cap = getattr(config, "final_logit_softcapping", None)

    def __call__(self, tokens: Int[Array, "batch tokens"], mask: Bool[Array, "batch tokens"], **how) -> Any:
        """Logits ``[batch, tokens, vocabulary]`` in float32 at least; with ``cache=``, those and the new cache."""
        out = self.backbone(tokens, mask, **how)
        if how.get("cache") is None:
            return self.logits(out)
        hidden, cache = out
        return self.logits(hidden), cache

    def logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocabulary"]:
        """The next token's logits from hidden states; apart, so that a loss can take them a chunk at a time."""
        logits = self.backbone.embed.attend(hidden) if self.lm_head is None else self.lm_head(hidden)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits if self.cap is None else self.cap * jnp.tanh(logits / self.cap)
