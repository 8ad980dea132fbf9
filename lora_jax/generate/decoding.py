"""The settings of text generation, validated. They are static: each combination compiles its own program."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lora_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings of text generation. The default is greedy search.

    Names and defaults are those of ``transformers.GenerationConfig`` where nothing else is said.

    Attributes:
      new_tokens: a row ends after this many tokens, or at a stop token.
      beams: above 1, beam search with this many hypotheses.
      length_penalty: beam search ranks finished hypotheses by log-probability / length ** `length_penalty`.
      no_repeat_ngram: with n > 0, no n tokens occur twice in prompt and answer together.
      no_repeat_prompt: False excludes the prompt from that rule, so that the answer may copy from it, as in the LoRA
        paper's code (microsoft/LoRA, examples/NLG/src/gpt2_beam.py).
      temperature: above 0, tokens are sampled.
      top_k: sample from the k likeliest tokens. 0 means no limit.
      top_p: sample from the fewest tokens with this probability. Both apply after the temperature.
      stop: token ids that end a row. The answer includes them.
      pad: fills a row after its end.

    Raises:
      UserError: a value is out of range, or two settings exclude each other.
    """

    new_tokens: int
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    no_repeat_prompt: bool = True
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    pad: int = 0

    def __post_init__(self):
        object.__setattr__(self, "stop", tuple(self.stop))  # a list could not be a static argument
        for name, minimum in {"new_tokens": 1, "beams": 1, "no_repeat_ngram": 0, "top_k": 0, "pad": 0}.items():
            if (value := getattr(self, name)) < minimum:
                raise UserError(f"{name}={value}: must be {minimum} or more")
        if any(token < 0 for token in self.stop):
            raise UserError(f"stop={self.stop}: token ids must be 0 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature={self.temperature}: must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty={self.length_penalty}: must be a finite number")
        if self.temperature and self.beams > 1:
            raise UserError(f"temperature={self.temperature}: beam search does not sample; must be 0, or beams=1")
        for name, unused in {"top_k": 0, "top_p": 1}.items():
            if (value := getattr(self, name)) != unused and not self.temperature:
                raise UserError(
                    f"{name}={value}: limits what is sampled from; must be {unused}, or temperature above 0"
                )

    def is_stop(self, token: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Returns whether `token` is a stop token."""
        return jnp.isin(token, jnp.asarray(self.stop, jnp.int32))
