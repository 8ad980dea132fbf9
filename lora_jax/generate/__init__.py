"""Text generation with a key-value cache: greedy search, sampling and beam search, on one model or a pack of them."""

from lora_jax.data.tokens import left_pad
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.search import generate
from lora_jax.generate.text import generate_text

__all__ = ["Decoding", "generate", "generate_text", "left_pad"]
