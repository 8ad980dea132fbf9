"""Tiny random models of every family, for tests of weight files."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

from lora_jax.delta import parameters
from lora_jax.models import FAMILIES
from lora_jax.weights.fingerprint import fingerprint
from lora_jax.weights.heads import fit
from lora_jax.weights.load import Base
from lora_jax.weights.preprocessing import Preprocessing
from lora_jax.weights.special import Special

VOCAB_SIZE = 61
ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}
DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
GEMMA2 = DECODER | {"sliding_window": 5, "query_pre_attn_scalar": 30, "tie_word_embeddings": True}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Small configurations that together use all names of a family: (`model_type`, other keys of config.json).
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", ENCODER),
    "roberta": ("roberta", ENCODER | {"pad_token_id": 1}),
    "deberta-v3": ("deberta-v2", ENCODER | DEBERTA),
    "deberta-v2": ("deberta-v2", ENCODER | DEBERTA | {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "vit": (
        "vit",
        {key: ENCODER[key] for key in ENCODER if key not in ("vocab_size", "type_vocab_size")}
        | {"image_size": 12, "patch_size": 4, "num_channels": 3},
    ),
    "llama": ("llama", DECODER),
    "llama3": ("llama", DECODER | {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", DECODER | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", DECODER),
    "gemma": ("gemma", DECODER | {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma3": (
        "gemma3_text",
        GEMMA2 | {"sliding_window_pattern": 2, "rope_theta": 500.0, "rope_local_base_freq": 50.0},
    ),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCAB_SIZE, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 40}
        | {"bos_token_id": 0, "eos_token_id": 0},  # the default ids are beyond so small a vocabulary
    ),
    "gpt_neox": ("gpt_neox", {key: DECODER[key] for key in DECODER if key not in ("num_key_value_heads", "head_dim")}),
}


def heads(name: str) -> tuple[str, ...]:
    """Returns the heads that this model supports."""
    return FAMILIES[TINY[name][0]].heads


def tokenizer() -> Tokenizer:
    """Returns a tokenizer whose vocabulary is w0, w1, ..."""
    words = Tokenizer(tokenizer_models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words


def tiny(name: str, head: str, **kwargs: Any) -> Base:
    """Returns one of TINY with a head. `kwargs` are those of `random_base`."""
    return random_base(*TINY[name], head, **kwargs)


def random_base(
    kind: str, values: dict[str, Any], head: str, *, labels: int = 5, dtype: DTypeLike = jnp.float32, seed: int = 0
) -> Base:
    """Returns a model as `load_base` returns it. Every parameter is random, even those of a new head."""
    row = FAMILIES[kind]
    pool = "last" if row.causal else "first"
    names = {prefix + part for prefix in row.prefixes for part in row.names}
    fields = {field.name for field in dataclasses.fields(row.config)}
    config = row.config(**{key: value for key, value in {"model_type": kind, **values}.items() if key in fields})
    module = fit(row, config, names, head, labels=labels, pool=pool).module
    rng = np.random.default_rng(seed)

    def draw(keys, leaf):
        spread = rng.normal(size=leaf.shape) * (0.1 if len(leaf.shape) == 1 else 1.5 * leaf.shape[-1] ** -0.5)
        return jnp.asarray(spread + any(getattr(key, "name", None) == "scale" for key in keys), dtype)

    model: Any = jax.tree_util.tree_map_with_path(draw, module)
    if head == "classifier" and row.causal:  # transformers has no bias there
        model.head.bias.set_value(jnp.zeros(labels, dtype))
    reader = Preprocessing((12, 12), 2, 1 / 255, (0.5,) * 3, (0.5,) * 3) if row.images else tokenizer()
    special = (
        Special()
        if row.images
        else Special(1, (2, 3), "{{ bos_token }}{{ messages[0].content }}", {"bos_token": "w1", "eos_token": "w2"})
    )
    loaded = sum(leaf.size for path, leaf in parameters(model).items() if not path.startswith("head/"))
    return Base(model, reader, "nowhere", fingerprint(model), loaded, special, {"model_type": kind, **values})
