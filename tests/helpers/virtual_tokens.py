"""Virtual tokens with the embeddings of words, and the same texts with the words written out."""

import jax.numpy as jnp
import numpy as np
from helpers.families import CONFIGS, model_of

from lora_jax.adapters import VirtualRows, VirtualTokens
from lora_jax.delta import parameters
from lora_jax.methods.virtual import TOKENS
from lora_jax.models import FAMILIES

READERS = [name for name in CONFIGS if name != "vit"]
DECODERS = [name for name in CONFIGS if FAMILIES[CONFIGS[name][0]].causal]
PREFIX, INFIX = [3, 9], [5]  # words of the vocabulary, in the place of virtual tokens


def slot_of(name: str) -> str:
    return "backbone/embed/adapter" if name in DECODERS else "backbone/embed/word/adapter"


def masks(prefix: int, infix: int, spare: int = 0) -> VirtualTokens:
    number = jnp.arange(prefix + infix + spare)
    return VirtualTokens(number < prefix, (number >= prefix) & (number < prefix + infix))


def of_words(name: str, prefix=PREFIX, infix=INFIX, spare: int = 0) -> dict:
    """Returns a delta of virtual tokens with the embeddings of words of the vocabulary."""
    table = parameters(model_of(name))[slot_of(name).replace("adapter", "embedding")]
    rows = VirtualRows(table[jnp.array([*prefix, *infix])]).resize(len(prefix) + len(infix) + spare)
    return {slot_of(name): rows, TOKENS: masks(len(prefix), len(infix), spare)}


def with_words(tokens, mask, prefix=PREFIX, infix=INFIX, ends=None):
    """Returns the same texts with words inserted, right-padded, and the columns of each text's own tokens."""
    rows, columns = [], []
    for i, (row, there) in enumerate(zip(np.asarray(tokens), np.asarray(mask), strict=True)):
        own = row[there]
        end = len(own) if ends is None else int(ends[i]) - int(np.argmax(there))
        rows.append([*prefix, *own[:end], *infix, *own[end:]])
        columns.append(len(prefix) + np.arange(len(own)) + np.where(np.arange(len(own)) >= end, len(infix), 0))
    width = max(map(len, rows))
    filled = np.array([len(row) for row in rows])[:, None] > np.arange(width)
    return np.array([row + [1] * (width - len(row)) for row in rows], np.int32), filled, columns
