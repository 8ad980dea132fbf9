"""Small random models, one or more per family, for tests of all families."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from lora_jax.models import FAMILIES
from lora_jax.models.causal import CausalLM
from lora_jax.models.heads import Classifier, ImageClassifier

_ENCODER = {"vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3} | {
    "intermediate_size": 32,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}
_DECODER = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2} | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_DEBERTA = {
    "max_relative_positions": -1,
    "position_buckets": 8,
    "pos_att_type": "c2p|p2c",
    "norm_rel_ebd": "layer_norm",
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _ENCODER | {"max_position_embeddings": 20}),
    "roberta": ("roberta", _ENCODER | {"max_position_embeddings": 20}),
    "deberta": (
        "deberta-v2",
        _ENCODER
        | _DEBERTA
        | {"max_position_embeddings": 20, "relative_attention": True, "share_att_key": True, "conv_kernel_size": 3}
        | {"position_biased_input": False, "type_vocab_size": 0},
    ),
    "vit": (
        "vit",
        {key: value for key, value in _ENCODER.items() if key != "vocab_size"}
        | {"image_size": 8, "patch_size": 2, "num_channels": 3},
    ),
    "gpt2": ("gpt2", {"vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 20}),
    "gpt_neox": ("gpt_neox", _ENCODER),
    "llama": ("llama", _DECODER),
    "qwen3": ("qwen3", _DECODER | {"model_type": "qwen3", "tie_word_embeddings": True}),
    "gemma": ("gemma", _DECODER),
    "gemma2": ("gemma2", _DECODER | {"sliding_window": 5}),
    "gemma3": ("gemma3_text", _DECODER | {"sliding_window": 5, "sliding_window_pattern": 2}),
}


@functools.cache
def model_of(name: str):
    """Returns a float32 model: a causal language model for a decoder's family, else a classifier of 3 labels."""
    family = FAMILIES[CONFIGS[name][0]]
    config = family.config(**CONFIGS[name][1])
    rng = np.random.default_rng(0)

    def make():
        backbone = family.module(config)
        if family.causal:
            return CausalLM(backbone)
        return (ImageClassifier if family.images else Classifier)(backbone, config.hidden_size, 3)

    def fill(keys, leaf):
        spread = rng.normal(size=leaf.shape, scale=0.15).astype(np.float32)
        return jnp.asarray(spread + any(getattr(key, "name", None) == "scale" for key in keys))

    with jax.ensure_compile_time_eval():  # the cached model must not belong to a trace of its first caller
        return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(make))


def inputs_of(name: str, tokens: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and a mask: texts without padding, and padded right, left and on both sides. For ViT, images."""
    rng = np.random.default_rng(1)
    if name == "vit":
        return rng.normal(size=(4, 8, 8, 3)).astype(np.float32), np.ones((4, 1), bool)
    mask = np.ones((4, tokens), bool)
    mask[1, 7:] = mask[2, :3] = mask[3, :2] = mask[3, 9:] = False
    return np.where(mask, rng.integers(2, 31, mask.shape), 1).astype(np.int32), mask


def meaningful(name: str, output, mask):
    """Returns the part of a model's output that does not belong to padding."""
    return output[mask] if FAMILIES[CONFIGS[name][0]].causal else output


def equations(jaxpr):
    """Yields every equation of a jaxpr and of the jaxprs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
