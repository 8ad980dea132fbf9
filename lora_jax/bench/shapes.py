"""Models that a step is measured on, by their ``config.json`` alone, and the arithmetic that a step of them needs.

Nothing of JAX or torch is imported: both sides read this.
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
# A forward pass multiplies by every weight once; so does the gradient of the activations, and that of the weights.
FLOPS_PER_WEIGHT = {"lora": 4, "full": 6}


def linears(shape: str) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of each linear layer of a block."""
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
    """Weights that a token is multiplied by: every block's linear layers and the output layer.

    An embedding is a lookup and is not counted; where it is tied, it is counted as the output layer that it is too.
    """
    config = SHAPES[shape]
    block = sum(d_in * d_out for d_in, d_out in linears(shape).values())
    return config["num_hidden_layers"] * block + config["hidden_size"] * config["vocab_size"]


def model_flops(shape: str, method: str, texts: int, tokens: int) -> float:
    """FLOPs that a step on `texts` of `tokens` needs, a multiplication and an addition counted as two.

    4 a token for each of `weights` under LoRA, 6 in full fine-tuning; and attention's two products, forward once and
    backward twice, over the (tokens + 1) / 2 keys that a causal mask leaves a token on average. Not counted: what is
    computed again (rematerialisation), LoRA's own factors (`adapter_flops`), norms, softmax, the optimizer.
    """
    config = SHAPES[shape]
    attention = 3 * 2 * 2 * config["num_hidden_layers"] * config["hidden_size"] * (tokens + 1) / 2
    return texts * tokens * (FLOPS_PER_WEIGHT[method] * weights(shape) + attention)


def adapter_flops(shape: str, rank: int, texts: int, tokens: int) -> float:
    """FLOPs of one run's LoRA factors on every linear layer of the blocks: 6 a token for each of their numbers."""
    pairs = sum(rank * (d_in + d_out) for d_in, d_out in linears(shape).values())
    return 6.0 * texts * tokens * SHAPES[shape]["num_hidden_layers"] * pairs
