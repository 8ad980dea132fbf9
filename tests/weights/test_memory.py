"""Host memory of loading: the peak is little more than the parameters, for every form of checkpoint."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from helpers.tiny_models import tokenizer
from safetensors.numpy import save_file

LAYERS, WIDTH, INNER, VOCABULARY = 2, 512, 1024, 40_000  # most of the model is one array, as in small Gemmas
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "rms_norm_eps": 1e-5,
}
# The measurement needs a new process, because the high-water mark is that of the whole process. A first load of a much
# smaller model of the same kind loads all code and allocates JAX's pools.
MEASURE = """
import json, sys
import jax.numpy as jnp
from lora_jax.weights.load import load_base

def status(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return 1024 * int(line.split()[1])

dtype = jnp.dtype(sys.argv[3])
load_base(sys.argv[1], "llama", head="causal", dtype=dtype)
open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
before = status("VmRSS:")
base = load_base(sys.argv[2], "llama", head="causal", dtype=dtype)
print(json.dumps({"loaded": base.parameters * dtype.itemsize, "peak": status("VmHWM:") - before}))
"""


def tensors(config):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", draw(vocabulary, width)
    yield "lm_head.weight", draw(vocabulary, width)
    yield "model.norm.weight", draw(width)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            **{f"self_attn.{x}_proj": (width, width) for x in "qkvo"},
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", draw(*shape)


def safetensors(folder, config):
    """Writes a checkpoint in float32, in shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    shards = {}
    for name, tensor in tensors(config):
        file = f"{'vocabulary' if tensor.shape[0] == config['vocab_size'] else 'layers'}-{len(shards) // 8}.safetensors"
        shards.setdefault(file, {})[name] = tensor
    for file, shard in shards.items():
        save_file(shard, folder / file)
    index = {"weight_map": {name: file for file, shard in shards.items() for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}


def gguf_file(folder, config, encoding):
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])
    for name, tensor in tensors(config):
        for part, gguf_part in NAMES.items():
            name = name.replace(part, gguf_part)
        kind = gguf.GGMLQuantizationType[encoding if tensor.ndim == 2 else "F32"]
        writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["safetensors", "F16", "Q8_0"])
def test_peak_host_memory_is_at_most_1_3_times_the_parameters(form, dtype, tmp_path):
    """The parameters count in their target dtype (185 MB as float32)."""
    for name, config in {
        "small": CONFIG | {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64},
        "large": CONFIG,
    }.items():
        if form == "safetensors":
            safetensors(tmp_path / name, config)
        else:
            gguf_file(tmp_path / name, config, form)
    folders = [str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *folders, dtype], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    ratio = measured["peak"] / measured["loaded"]
    print(f"{form} as {dtype}: {measured['loaded'] / 1e6:.0f} MB loaded, peak {ratio:.2f} times that")
    assert measured["loaded"] > 90e6 and ratio <= 1.3
