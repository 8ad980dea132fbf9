"""Language modelling on a decoder: from hidden states to the logits of the next token."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.causality import Cache
from lora_jax.models.layers import Key, Linear
from lora_jax.models.options import ComputeOptions


class CausalLM(nnx.Module):
    """A decoder with an output layer over its vocabulary.

    The backbone's config says whether the output layer is the embedding's transpose (`tie_word_embeddings`) or
    `lm_head`, and whether logits are capped (`final_logit_softcapping`, Gemma 2). LoRA on a tied embedding adapts the
    lookup alone, as in PEFT.
    """

    def __init__(self, backbone: Any):
        config = backbone.config
        self.backbone = backbone
        self.lm_head = (
            nnx.data(None) if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.tied = "backbone/embed" if config.tie_word_embeddings else None
        self.softcap = getattr(config, "final_logit_softcapping", None)

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
        *,
        dropout_rate: Float[Array, ""] | float = 0.0,
        key: Key = None,
        options: ComputeOptions = ComputeOptions(),
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        cache: Cache | None = None,
        prompt_end: Int[Array, " batch"] | None = None,
        start: bool = True,
    ) -> Any:
        """Computes the logits of every next token. The arguments are those of `Decoder.__call__`.

        Returns:
          Logits ``[batch, seq, vocab]`` in float32 at least. With a cache, those and the new cache.
        """
        output = self.backbone(
            tokens,
            mask,
            dropout_rate=dropout_rate,
            key=key,
            options=options,
            positions=positions,
            segments=segments,
            cache=cache,
            prompt_end=prompt_end,
            start=start,
        )
        if cache is None:
            return self.logits(output)
        hidden, cache = output
        return self.logits(hidden), cache

    def logits(self, hidden: Float[Array, "... d_model"]) -> Float[Array, "... vocab"]:
        """Returns the next token's logits from hidden states.

        It is a method of its own so that a loss can compute the logits a chunk at a time.
        """
        logits = self.backbone.embed.attend(hidden) if self.lm_head is None else self.lm_head(hidden)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)
