"""Text generation with a cache of keys and values: greedy, drawing, beam search; alone, adapted or packed."""

from lora_jax.data.tokens import left_padded
from lora_jax.generate.decoding import Decoding
from lora_jax.generate.search import generate
from lora_jax.generate.text import generate_text

__all__ = ["Decoding", "generate", "generate_text", "left_padded"]
