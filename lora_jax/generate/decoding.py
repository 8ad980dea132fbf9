"""How to decode: the settings that shape the program, checked."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lora_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Greedy search by default; drawing with a `temperature`, beam search with `beams`.

    A row is over after `new_tokens` tokens or one of `stop`, which is returned too; `pad` fills what is left of it. A
    beam search ranks what has ended by log-probability / length ** `length_penalty`. With `no_repeat_ngram` n, no n
    tokens come twice in prompt and answer together. Without `no_repeat_prompt` the prompt does not count, so that the
    answer may copy from it, as in the LoRA paper's code (microsoft/LoRA, examples/NLG/src/gpt2_beam.py). `top_k` (0 for
    no limit) and `top_p` cut the distribution that is drawn from, after `temperature`. Meanings and defaults are
    otherwise those of ``transformers.GenerationConfig``.

    Raises UserError for values out of range and for settings that exclude each other.
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
        for name, least in {"new_tokens": 1, "beams": 1, "no_repeat_ngram": 0, "top_k": 0, "pad": 0}.items():
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name}={value}: must be {least} or more")
        if any(token < 0 for token in self.stop):
            raise UserError(f"stop={self.stop}: token ids must be 0 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature={self.temperature}: must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty={self.length_penalty}: must be a finite number")
        if self.temperature and self.beams > 1:
            raise UserError(f"temperature={self.temperature}: beam search draws nothing; must be 0, or beams=1")
        for name, unused in {"top_k": 0, "top_p": 1}.items():
            if (value := getattr(self, name)) != unused and not self.temperature:
                raise UserError(f"{name}={value}: cuts what is drawn from; must be {unused}, or temperature above 0")

    def ends(self, token: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Whether it is a stop token."""
        return jnp.isin(token, jnp.asarray(self.stop, jnp.int32))
