"""A model into a folder that ``transformers`` loads: the inverse of weights/load.py, by the same tables of names."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lora_jax.delta import parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES, Family
from lora_jax.models.causal import CausalLM
from lora_jax.models.heads import Classifier, ImageClassifier, TokenClassifier
from lora_jax.models.masked import MaskedLM
from lora_jax.weights.heads import Paths, as_tuple
from lora_jax.weights.load import NEW, Base
from lora_jax.weights.preprocessing import Preprocessing

# What the names of a family's classes in transformers begin with.
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
_ODD_CLASSES = {"Gemma3TextForCausalLM": "Gemma3ForCausalLM", "GPT2ForCausalLM": "GPT2LMHeadModel"}
_LINEAR = {"classifier.weight": "head/kernel", "classifier.bias": "head/bias"}
# Heads of sequence classification that are not one linear layer called `classifier`.
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
    """The class of transformers that computes what a module does, its names of what is not the backbone's, what it
    wants config.json to say, and the paths, all zero, that it has no place for."""

    ending: str
    names: Mapping[str, Paths]
    config: Mapping[str, Any]
    unwritten: tuple[str, ...] = ()


def save_pretrained(
    folder: Path, base: Base, model: nnx.Module | None = None, *, largest_shard: int = LARGEST_SHARD
) -> None:
    """Writes `model`, by default ``base.model``, to `folder`: safetensors, config.json and what reads its input.

    `model` is what was loaded as `base`, trained or with a delta merged into it; or its ``backbone`` alone. Kernels
    that are quantised are written at full width. A checkpoint of more than `largest_shard` bytes becomes several files
    and an index. Everything is written beside `folder` and renamed into place.

    Raises UserError when `folder` holds anything, when `model` has a delta in it that is not merged, and for a head or
    a setting that ``transformers`` cannot compute.
    """
    folder, model = Path(folder).absolute(), base.model if model is None else model
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; nothing there is replaced, name another folder")
    kind = base.config["model_type"]
    row, held = FAMILIES[kind], parameters(model)
    if slots := sorted(path for path in held if "lora" in path.split("/")):
        raise UserError(f"the model has a delta in it, at {slots[0]} and others: save what lora_jax.merge makes of it")
    target = _target(kind, row, model)
    config = _config(base, held, CLASSES[kind] + target.ending, target.config)
    root = "backbone/" if hasattr(model, "backbone") else ""
    prefix = max(row.prefixes, key=len)
    names: dict[str, Paths] = {prefix + name: tuple(root + p for p in as_tuple(to)) for name, to in row.names.items()}
    names |= target.names
    names = {name: paths for name, paths in names.items() if any(path in held for path in as_tuple(paths))}
    covered = {path for paths in names.values() for path in as_tuple(paths)}
    if odd := set(held) ^ covered.union(target.unwritten):
        raise ValueError(f"the table of names and the module differ: {sorted(odd)}")
    backbone: Any = getattr(model, "backbone", model)
    windows = {prefix + name: shape(backbone.config) for name, shape in row.windows.items()}
    tensors = _tensors(held, names, windows, row.groups(backbone.config), transpose=row.transpose)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        complete = Path(temporary, "new")
        complete.mkdir()
        _write_shards(complete, tensors, largest_shard)
        _write_json(complete / "config.json", config)
        _write_reader(complete, base)
        os.replace(complete, folder)


def _target(kind: str, row: Family, model: nnx.Module) -> _Target:
    match model:
        case CausalLM():
            return _Target("ForCausalLM", {row.lm_head: "lm_head/kernel"}, {})
        case MaskedLM():
            # DeBERTa's own head, which transformers has beside an older one of its making.
            return _Target("ForMaskedLM", row.masked_heads[0].paths, {"legacy": False} if kind == "deberta-v2" else {})
        case ImageClassifier():
            return _Target("ForImageClassification", _LINEAR, _labels(model))
        case TokenClassifier():
            at = "score" if row.causal and kind not in ("gpt2", "gpt_neox") else "classifier"
            names = {f"{at}.weight": "head/kernel", f"{at}.bias": "head/bias"}
            return _Target("ForTokenClassification", names, _labels(model))
        case Classifier():
            pool = "last" if row.causal else "first"
            if model.pool != pool:
                raise UserError(f"pool={model.pool!r}: a {kind} of transformers classifies by {pool!r}. {_ALONE}")
            if not row.causal:
                return _Target("ForSequenceClassification", _CLASSIFIERS.get(kind, _LINEAR), _labels(model))
            if np.any(np.asarray(model.head.bias)):
                raise UserError(f"the head has a bias, and that of a {kind} of transformers has none. {_ALONE}")
            names = {"score.weight": "head/kernel"}
            return _Target("ForSequenceClassification", names, _labels(model), unwritten=("head/bias",))
    return _Target("Model", {}, {})


_ALONE = "Its backbone can be saved: save_pretrained(folder, base, model.backbone)"


def _labels(model: Any) -> dict[str, Any]:
    names = [f"LABEL_{i}" for i in range(model.head.bias.shape[-1])]
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _config(base: Base, held: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the class `name`: what `base` came with, but for what that says of its own weights."""
    stale = ("dtype", "torch_dtype", "num_labels", "problem_type", "quantization_config", "transformers_version")
    values = {key: value for key, value in base.config.items() if key not in stale}
    if (values.get("rope_scaling") or {}).get("rope_type") == "factors":
        raise UserError(
            f"{base.source}: this GGUF file holds the rotary frequencies themselves, and transformers wants the rule "
            f"that they were made by; save from the checkpoint that the file was made of"
        )
    dtypes = [held[path].dtype.name for path in held if path.endswith("/embedding")]
    return values | {"architectures": [_ODD_CLASSES.get(name, name)], "torch_dtype": dtypes[0], **own}


def _tensors(
    held: Mapping[str, Any],
    names: Mapping[str, Paths],
    windows: Mapping[str, tuple[int, ...]],
    groups: int,
    *,
    transpose: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor as a checkpoint has it: one a layer, fused ones joined, kernels ``[d_out, d_in]``."""
    for name, paths in ((name, as_tuple(paths)) for name, paths in names.items()):
        arrays = [np.asarray(held[path].astype(held[path].dtype)) for path in paths]  # quantised ones widen
        for layer in range(len(arrays[0])) if "{}" in name else [...]:
            value = _joined([array[layer] for array in arrays], groups)
            # GPT-2 keeps [d_in, d_out], but not in transformers' heads on it.
            if paths[0].endswith("/kernel") and (transpose or paths[0].startswith(NEW)):
                value = value.T.reshape(-1, *windows[name]) if name in windows else value.T
            yield name.replace("{}", str(layer)), np.ascontiguousarray(value)


def _joined(parts: list[np.ndarray], groups: int) -> np.ndarray:
    """A fused tensor from its parts, as `weights.load.fill` takes it apart."""
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].shape[:-1]
    return np.concatenate([part.reshape(*shape, groups, -1) for part in parts], axis=-1).reshape(*shape, -1)


def _write_shards(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], largest: int) -> None:
    """One shard is in memory at a time."""
    shards: list[dict[str, int]] = []  # bytes of each tensor
    shard: dict[str, np.ndarray] = {}

    def close() -> None:
        save_file(shard, folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > largest:
            close()
        shard[name] = tensor
    close()
    if len(shards) == 1:
        os.replace(folder / "0.safetensors", folder / "model.safetensors")
        return
    index: dict[str, Any] = {"metadata": {"total_size": sum(sum(each.values()) for each in shards)}, "weight_map": {}}
    for i, each in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        os.replace(folder / f"{i}.safetensors", folder / file)
        index["weight_map"] |= dict.fromkeys(each, file)
    _write_json(folder / "model.safetensors.index.json", index)


def _write_reader(folder: Path, base: Base) -> None:
    """The tokenizer and what its texts begin and end with, or the preprocessing of pictures."""
    if isinstance(base.tokenizer, Preprocessing):
        _write_json(folder / "preprocessor_config.json", base.tokenizer.as_json())
        return
    base.tokenizer.save(str(folder / "tokenizer.json"))
    special = base.special
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **special.texts}
    if special.chat_template is not None:
        about["chat_template"] = special.chat_template
    _write_json(folder / "tokenizer_config.json", about)
    ids = {"bos_token_id": special.bos, "eos_token_id": list(special.eos) or None}
    _write_json(folder / "generation_config.json", {key: value for key, value in ids.items() if value is not None})


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
