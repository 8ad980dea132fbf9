"""How many parameters a model has, counted without making one."""

import jax
import pytest

from lora_jax.delta import count
from lora_jax.models import FAMILIES
from lora_jax.models.causal import CausalLM


def llama(vocab, width, inner, layers, heads, kv_heads, tied=False):
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    }


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("llama", llama(32000, 4096, 11008, 32, 32, 32), 6_738_415_616),  # Llama 2 7B
        ("llama", llama(128256, 4096, 14336, 32, 32, 8), 8_030_261_248),  # Llama 3.1 8B
        ("llama", llama(49152, 576, 1536, 30, 9, 3, tied=True), 134_515_008),  # SmolLM2 135M
        ("qwen2", llama(151936, 896, 4864, 24, 14, 2, tied=True) | {"model_type": "qwen2"}, 494_032_768),  # 0.5B
        (
            "qwen3",
            llama(151936, 1024, 3072, 28, 16, 8, tied=True) | {"model_type": "qwen3", "head_dim": 128},
            596_049_920,  # 0.6B
        ),
        ("gpt2", {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}, 124_439_808),
        ("gpt2", {"vocab_size": 50257, "n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),  # medium
        ("gpt2", {"vocab_size": 50257, "n_embd": 1280, "n_layer": 36, "n_head": 20}, 774_030_080),  # large
        ("gpt2", {"vocab_size": 50257, "n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),  # XL
        ("gemma", llama(256000, 2048, 16384, 18, 8, 1, tied=True) | {"head_dim": 256}, 2_506_172_416),  # 2B
        ("gemma2", llama(256000, 2304, 9216, 26, 8, 4, tied=True) | {"head_dim": 256}, 2_614_341_888),  # 2B
        ("gemma3_text", llama(262144, 640, 2048, 18, 4, 1, tied=True) | {"head_dim": 256}, 268_098_176),  # 270M
    ],
)
def test_parameters(kind, values, expected):
    row = FAMILIES[kind]
    assert count(jax.eval_shape(lambda: CausalLM(row.module(row.config(**values))))) == expected
