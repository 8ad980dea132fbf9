"""Saves models in folders that ``transformers`` loads, by the same tables of names as weights/load.py."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lora_jax.delta import SLOT, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES, Family
from lora_jax.models.causal import CausalLM
from lora_jax.models.heads import Classifier, ImageClassifier, TokenClassifier
from lora_jax.models.masked import MaskedLM
from lora_jax.weights.fingerprint import NEW
from lora_jax.weights.heads import Paths, as_tuple
from lora_jax.weights.load import Base
from lora_jax.weights.preprocessing import Preprocessing

# The prefixes of the names of a family's classes in transformers.
CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "deberta-v2": "DebertaV2",
    "vit": "ViT",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
}
_IRREGULAR_CLASSES = {"Gemma3TextForCausalLM": "Gemma3ForCausalLM", "GPT2ForCausalLM": "GPT2LMHeadModel"}
_LINEAR = {"classifier.weight": "head/kernel", "classifier.bias": "head/bias"}
# Heads of sequence classification other than one linear layer with the name `classifier`.
_CLASSIFIERS = {
    "roberta": {
        "classifier.dense.weight": "head/dense/kernel",
        "classifier.dense.bias": "head/dense/bias",
        "classifier.out_proj.weight": "head/kernel",
        "classifier.out_proj.bias": "head/bias",
    },
    "deberta-v2": {**_LINEAR, "pooler.dense.weight": "head/dense/kernel", "pooler.dense.bias": "head/dense/bias"},
}
LARGEST_SHARD = 5 * 10**9  # bytes, as in transformers


class _Target(NamedTuple):
    """The class of transformers that corresponds to a module.

    Attributes:
      ending: the end of the class's name.
      names: paths of the head's parameters by the class's names.
      config: fields of config.json that the class needs.
      unwritten: paths of parameters that the class does not have. They are all zero.
    """

    ending: str
    names: Mapping[str, Paths]
    config: Mapping[str, Any]
    unwritten: tuple[str, ...] = ()


def save_pretrained(
    folder: Path, base: Base, model: nnx.Module | None = None, *, largest_shard: int = LARGEST_SHARD
) -> None:
    """Writes a model to `folder`: safetensors, config.json, and the tokenizer or the image preprocessing.

    Quantised kernels are written at full width. The files are written to a temporary folder beside `folder` and renamed
    into place.

    Args:
      folder: a new or empty folder.
      base: the base that `model` was loaded as.
      model: the model of `base`, trained or with a delta merged into it, or its ``backbone`` alone. None:
        ``base.model``.
      largest_shard: a checkpoint of more bytes is split into several files with an index.

    Raises:
      UserError: `folder` is not empty, `model` has a delta that is not merged, or ``transformers`` does not implement
        the head or a setting.
    """
    folder, model = Path(folder).absolute(), base.model if model is None else model
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another folder")
    kind = base.config["model_type"]
    row, model_parameters = FAMILIES[kind], parameters(model)
    if slots := sorted(path for path in model_parameters if SLOT in path.split("/")):
        raise UserError(f"the model has an unmerged delta, at {slots[0]}; save the result of lora_jax.merge")
    target = _target(kind, row, model)
    config = _config(base, model_parameters, CLASSES[kind] + target.ending, target.config)
    root = "backbone/" if hasattr(model, "backbone") else ""
    prefix = max(row.prefixes, key=len)
    names: dict[str, Paths] = {prefix + name: tuple(root + p for p in as_tuple(to)) for name, to in row.names.items()}
    names |= target.names
    names = {name: paths for name, paths in names.items() if any(path in model_parameters for path in as_tuple(paths))}
    covered = {path for paths in names.values() for path in as_tuple(paths)}
    if difference := set(model_parameters) ^ covered.union(target.unwritten):
        raise ValueError(f"the table of names and the module differ: {sorted(difference)}")
    backbone: Any = getattr(model, "backbone", model)
    windows = {prefix + name: shape(backbone.config) for name, shape in row.windows.items()}
    tensors = _tensors(model_parameters, names, windows, row.groups(backbone.config), transpose=row.transpose)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        complete = Path(temporary, "new")
        complete.mkdir()
        _write_shards(complete, tensors, largest_shard)
        _write_json(complete / "config.json", config)
        _write_reader(complete, base)
        os.replace(complete, folder)


def _target(kind: str, row: Family, model: nnx.Module) -> _Target:
    """Returns the class of transformers for `model`. Raises UserError if there is none."""
    match model:
        case CausalLM():
            return _Target("ForCausalLM", {row.lm_head: "lm_head/kernel"}, {})
        case MaskedLM():
            # DeBERTa's original head. In transformers, ``legacy: false`` selects it instead of an older head.
            return _Target("ForMaskedLM", row.masked_heads[0].paths, {"legacy": False} if kind == "deberta-v2" else {})
        case ImageClassifier():
            return _Target("ForImageClassification", _LINEAR, _labels(model))
        case TokenClassifier():
            layer = "score" if row.causal and kind not in ("gpt2", "gpt_neox") else "classifier"
            names = {f"{layer}.weight": "head/kernel", f"{layer}.bias": "head/bias"}
            return _Target("ForTokenClassification", names, _labels(model))
        case Classifier():
            pool = "last" if row.causal else "first"
            if model.pool != pool:
                raise UserError(f"pool={model.pool!r}: {kind} in transformers has pool={pool!r}. {_SAVE_BACKBONE}")
            if not row.causal:
                return _Target("ForSequenceClassification", _CLASSIFIERS.get(kind, _LINEAR), _labels(model))
            if np.any(np.asarray(model.head.bias)):
                raise UserError(
                    f"the head has a bias, and the head of {kind} in transformers has none. {_SAVE_BACKBONE}"
                )
            names = {"score.weight": "head/kernel"}
            return _Target("ForSequenceClassification", names, _labels(model), unwritten=("head/bias",))
    return _Target("Model", {}, {})


_SAVE_BACKBONE = "The backbone alone can be saved: save_pretrained(folder, base, model.backbone)"


def _labels(model: Any) -> dict[str, Any]:
    names = [f"LABEL_{i}" for i in range(model.head.bias.shape[-1])]
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _config(base: Base, model_parameters: Mapping[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json for the class `name`: that of `base`, without the fields that describe the base's weights."""
    stale = ("dtype", "torch_dtype", "num_labels", "problem_type", "quantization_config", "transformers_version")
    values = {key: value for key, value in base.config.items() if key not in stale}
    if (values.get("rope_scaling") or {}).get("rope_type") == "factors":
        raise UserError(
            f"{base.source}: this GGUF file has rotary frequencies, and transformers needs the rule for them; "
            f"save from the original checkpoint"
        )
    dtypes = [model_parameters[path].dtype.name for path in model_parameters if path.endswith("/embedding")]
    return values | {"architectures": [_IRREGULAR_CLASSES.get(name, name)], "torch_dtype": dtypes[0], **overrides}


def _tensors(
    model_parameters: Mapping[str, Any],
    names: Mapping[str, Paths],
    windows: Mapping[str, tuple[int, ...]],
    groups: int,
    *,
    transpose: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a checkpoint: one per layer, fused ones joined, kernels ``[d_out, d_in]``."""
    for name, paths in ((name, as_tuple(paths)) for name, paths in names.items()):
        arrays = [
            np.asarray(model_parameters[path].astype(model_parameters[path].dtype)) for path in paths
        ]  # dequantises
        for layer in range(len(arrays[0])) if "{}" in name else [...]:
            value = _fuse([array[layer] for array in arrays], groups)
            # GPT-2 stores [d_in, d_out], but transformers' heads on GPT-2 store [d_out, d_in].
            if paths[0].endswith("/kernel") and (transpose or paths[0].startswith(NEW)):
                value = value.T.reshape(-1, *windows[name]) if name in windows else value.T
            yield name.replace("{}", str(layer)), np.ascontiguousarray(value)


def _fuse(parts: list[np.ndarray], groups: int) -> np.ndarray:
    """Joins the parts of a fused tensor. The inverse of the division in `weights.load.fill`."""
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].shape[:-1]
    return np.concatenate([part.reshape(*shape, groups, -1) for part in parts], axis=-1).reshape(*shape, -1)


def _write_shards(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], largest: int) -> None:
    """Writes tensors to shards of at most `largest` bytes. One shard is in memory at a time."""
    shards: list[dict[str, int]] = []  # bytes of each tensor
    shard: dict[str, np.ndarray] = {}

    def close() -> None:
        save_file(shard, folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > largest:
            close()
        shard[name] = tensor
    close()
    if len(shards) == 1:
        os.replace(folder / "0.safetensors", folder / "model.safetensors")
        return
    index: dict[str, Any] = {"metadata": {"total_size": sum(sum(sizes.values()) for sizes in shards)}, "weight_map": {}}
    for i, sizes in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        os.replace(folder / f"{i}.safetensors", folder / file)
        index["weight_map"] |= dict.fromkeys(sizes, file)
    _write_json(folder / "model.safetensors.index.json", index)


def _write_reader(folder: Path, base: Base) -> None:
    """Writes the tokenizer with its special tokens, or the preprocessing of images."""
    if isinstance(base.tokenizer, Preprocessing):
        _write_json(folder / "preprocessor_config.json", base.tokenizer.as_json())
        return
    base.tokenizer.save(str(folder / "tokenizer.json"))
    special = base.special
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **special.texts}
    if special.chat_template is not None:
        tokenizer_config["chat_template"] = special.chat_template
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    ids = {"bos_token_id": special.bos, "eos_token_id": list(special.eos) or None}
    _write_json(folder / "generation_config.json", {key: value for key, value in ids.items() if value is not None})


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
