"""The shapes of the models in conf/model/, from their published config.json."""

from typing import Any


def _decoder(vocab: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, **more) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def _encoder(width: int, layers: int, heads: int, **more) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu",
        **more,
    }


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"vocab_size": 50257, "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024}


_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_ROBERTA: dict[str, Any] = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
_DEBERTA: dict[str, Any] = {
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "pos_att_type": "p2c|c2p",
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_VIT: dict[str, Any] = {"image_size": 224, "patch_size": 16, "num_channels": 3, "layer_norm_eps": 1e-12}
_LLAMA3: dict[str, Any] = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_GEMMA2: dict[str, Any] = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA3: dict[str, Any] = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "hidden_activation": "gelu_pytorch_tanh",
}

_NEOX: dict[str, Any] = {"vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25}

# `model_type` and the other fields of config.json that determine the shape, by the name of the file in conf/model/.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("bert", _BERT | _encoder(384, 6, 12)),
    "bert_base": ("bert", _BERT | _encoder(768, 12, 12)),
    "bert_large": ("bert", _BERT | _encoder(1024, 24, 16)),
    "roberta_base": ("roberta", _ROBERTA | _encoder(768, 12, 12)),
    "roberta_large": ("roberta", _ROBERTA | _encoder(1024, 24, 16)),
    "deberta_v3_base": ("deberta-v2", _DEBERTA | _encoder(768, 12, 12)),
    "deberta_v3_large": ("deberta-v2", _DEBERTA | _encoder(1024, 24, 16)),
    "deberta_v2_xxlarge": ("deberta-v2", _DEBERTA | _encoder(1536, 48, 24, conv_kernel_size=3, conv_act="gelu")),
    "vit_b16": ("vit", _VIT | _encoder(768, 12, 12)),
    "vit_l16": ("vit", _VIT | _encoder(1024, 24, 16)),
    "gpt2": ("gpt2", _gpt2(768, 12, 12)),
    "gpt2_medium": ("gpt2", _gpt2(1024, 24, 16)),
    "gpt2_large": ("gpt2", _gpt2(1280, 36, 20)),
    "gpt2_xl": ("gpt2", _gpt2(1600, 48, 25)),
    "pythia_160m": ("gpt_neox", _NEOX | _encoder(768, 12, 12)),
    "llama2_7b": ("llama", _decoder(32000, 4096, 11008, 32, 32, 32, rms_norm_eps=1e-5)),
    "llama31_8b": ("llama", _decoder(128256, 4096, 14336, 32, 32, 8, rms_norm_eps=1e-5, **_LLAMA3)),
    "llama32_1b": (
        "llama",
        _decoder(128256, 2048, 8192, 16, 32, 8, head_dim=64, rms_norm_eps=1e-5, **_LLAMA3, **_TIED),
    ),
    "smollm2_135m": ("llama", _decoder(49152, 576, 1536, 30, 9, 3, rope_theta=1e5, **_TIED)),
    "smollm2_360m": ("llama", _decoder(49152, 960, 2560, 32, 15, 5, rope_theta=1e5, **_TIED)),
    "smollm2_1_7b": ("llama", _decoder(49152, 2048, 8192, 24, 32, 32, rope_theta=130000.0, **_TIED)),
    "qwen2_0_5b": ("qwen2", _decoder(151936, 896, 4864, 24, 14, 2, rope_theta=1e6, **_TIED)),
    "qwen25_0_5b": ("qwen2", _decoder(151936, 896, 4864, 24, 14, 2, rope_theta=1e6, **_TIED)),
    "qwen3_0_6b": ("qwen3", _decoder(151936, 1024, 3072, 28, 16, 8, head_dim=128, rope_theta=1e6, **_TIED)),
    "gemma2_2b": ("gemma2", _decoder(256000, 2304, 9216, 26, 8, 4, **_GEMMA2)),
    "gemma3_270m": ("gemma3_text", _decoder(262144, 640, 2048, 18, 4, 1, **_GEMMA3)),
    "gemma3_1b": ("gemma3_text", _decoder(262144, 1152, 6912, 26, 4, 1, **_GEMMA3)),
}
