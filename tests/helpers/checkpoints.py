"""Random checkpoints in folders, as transformers would write them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

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
