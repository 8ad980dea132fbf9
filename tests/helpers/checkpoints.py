"""Random checkpoints in folders, as transformers would write them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from lora_jax.delta import parameters
from lora_jax.models import FAMILIES, bert
from lora_jax.weights import load


def tiny_bert(**sizes: int) -> bert.BertConfig:
    """Returns the shape of a BERT of 2 layers and 4 heads of width 32."""
    return bert.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **sizes)


def save_checkpoint(folder: Path, family: str, config: Any) -> Path:
    """Writes a random checkpoint of `config`'s shape to `folder`, and returns `folder`."""
    row = FAMILIES[family]
    module = load.random(jax.eval_shape(lambda: row.module(config)), 0)
    settings = {key: value for key, value in dataclasses.asdict(config).items() if not key.startswith("rope_")}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": family}))
    held = {path: np.asarray(value) for path, value in parameters(module).items()}
    tensors = {}
    for name, path in row.names.items():
        if path not in held:
            continue  # the table is for all of the family's configurations
        array = held[path].swapaxes(-1, -2) if path.endswith("/kernel") else held[path]
        layers = range(config.num_hidden_layers) if "{}" in name else [...]
        tensors |= {name.replace("{}", str(i)): np.array(array[i], order="C") for i in layers}
    save_file(tensors, folder / "model.safetensors")
    return folder


def add_masked_head(folder: Path, config: bert.BertConfig) -> Path:
    """Adds a random head of masked language modelling to the BERT in `folder`, and returns `folder`."""
    rng = np.random.default_rng(0)
    width = config.hidden_size
    shapes = {"transform.dense.weight": (width, width), "transform.dense.bias": (width,), "bias": (config.vocab_size,)}
    head = {name: 0.1 * rng.normal(size=shape) for name, shape in shapes.items()}
    head |= {"transform.LayerNorm.weight": np.ones(width), "transform.LayerNorm.bias": np.zeros(width)}
    file = folder / "model.safetensors"
    named = {f"cls.predictions.{name}": value.astype(np.float32) for name, value in head.items()}
    save_file(load_file(file) | named, file)
    return folder
