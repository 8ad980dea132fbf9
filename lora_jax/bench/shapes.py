"""Shapes of the models in the step bench, as ``config.json`` has them, and the FLOPs of a step.

Both sides import this module, so it imports neither JAX nor torch.
"""

from typing import Any

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2_135m": _LLAMA
    | {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0, "tie_word_embeddings": True},
    "llama3_8b": _LLAMA
    | {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "tie_word_embeddings": False},
    "tiny": _LLAMA
    | {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 10000.0, "tie_word_embeddings": False},
}
# 2 FLOPs for each weight and token in the forward pass, in the gradient of activations, and in that of weights.
FLOPS_PER_WEIGHT = {"lora": 4, "full": 6}


def linears(shape: str) -> dict[str, tuple[int, int]]:
    """Returns (d_in, d_out) of each linear layer of a block."""
    config = SHAPES[shape]
    width, inner = config["hidden_size"], config["intermediate_size"]
    key_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    return {
        "q": (width, width),
        "k": (width, key_width),
        "v": (width, key_width),
        "o": (width, width),
        "gate": (width, inner),
        "up": (width, inner),
        "down": (inner, width),
    }


def weights(shape: str) -> int:
    """Returns the number of weights that a token is multiplied by: the blocks' linear layers and the output layer.

    An embedding is a lookup and is not counted. A tied embedding counts as the output layer.
    """
    config = SHAPES[shape]
    block = sum(d_in * d_out for d_in, d_out in linears(shape).values())
    return config["num_hidden_layers"] * block + config["hidden_size"] * config["vocab_size"]


def model_flops(shape: str, method: str, texts: int, tokens: int) -> float:
    """Returns the FLOPs of a step on `texts` of `tokens` tokens. A multiplication and an addition count as two.

    Each of `weights` takes 4 FLOPs per token under LoRA, and 6 in full fine-tuning. Attention's two products count once
    forward and twice backward, over the (tokens + 1) / 2 keys that a causal mask leaves a token on average. Not counted
    are rematerialisation, LoRA's factors (`adapter_flops`), norms, softmax and the optimizer.
    """
    config = SHAPES[shape]
    attention = 3 * 2 * 2 * config["num_hidden_layers"] * config["hidden_size"] * (tokens + 1) / 2
    return texts * tokens * (FLOPS_PER_WEIGHT[method] * weights(shape) + attention)


def adapter_flops(shape: str, rank: int, texts: int, tokens: int) -> float:
    """Returns the FLOPs of one run's LoRA factors on every linear layer of the blocks: 6 per parameter and token."""
    pairs = sum(rank * (d_in + d_out) for d_in, d_out in linears(shape).values())
    return 6.0 * texts * tokens * SHAPES[shape]["num_hidden_layers"] * pairs
