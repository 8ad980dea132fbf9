"""Saves and loads adapters: a folder with the trained parameters at true sizes, the constants and the settings.

    delta.safetensors   {"params/backbone/layers/attn/q/adapter/a": [layers, d_in, r], "params/head/kernel/value": ...,
                         "constants/backbone/layers/attn/q/adapter/scale": [layers]}
    adapter.json        {"format": 2, "base": {"source", "fingerprint"}, "sha256": of delta.safetensors,
                         "params": {path: {"kind": "low_rank", "fields": ["a", "b"]}}, "constants": likewise,
                         "config": method and its settings, rank, alpha, ...}

The base is not saved. A and B are saved as trained: the scale is a separate constant. `load_adapter` also reads format
1, which lora_jax wrote until November 2026 for LoRA and full fine-tuning.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lora_jax.adapters import ADAPTERS, LowRank, Padded, Replacement, Scaling
from lora_jax.delta import SLOT
from lora_jax.errors import UserError
from lora_jax.records import TEMPORARY

FORMAT = 2
TENSORS, DESCRIPTION = "delta.safetensors", "adapter.json"


Tree = Mapping[str, Padded]  # adapters by path


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A loaded adapter. The method named in `config` computes the delta from `params` and `constants`."""

    params: dict[str, Padded]
    constants: dict[str, Padded]
    config: dict[str, Any]
    base_source: str
    base_fingerprint: str


def save_adapter(
    folder: Path,
    params: Tree,
    constants: Tree,
    *,
    base_source: str,
    base_fingerprint: str,
    config: Mapping[str, Any],
) -> int:
    """Writes an adapter to `folder`, and replaces an adapter that is there.

    The files are written to a temporary folder beside `folder` and renamed into place, so a killed process leaves a
    complete adapter or none.

    Args:
      folder: the folder of the adapter.
      params: a method's parameters, at true sizes.
      constants: the method's constants, at true sizes.
      base_source: the URI of the base.
      base_fingerprint: the fingerprint of the base.
      config: any JSON object.

    Returns:
      The bytes of both files.

    Raises:
      UserError: `folder` has other content than an adapter.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {TENSORS, DESCRIPTION}):
        raise UserError(f"{folder} exists and is not an adapter's folder; choose another folder")
    trees = {"params": params, "constants": constants}
    arrays = {f"{part}/{key}": array for part, tree in trees.items() for key, array in _flat(tree).items()}
    tensors = save({key: np.asarray(array, order="C") for key, array in arrays.items()})
    description = {
        "format": FORMAT,
        "base": {"source": base_source, "fingerprint": base_fingerprint},
        "sha256": hashlib.sha256(tensors).hexdigest(),
        **{part: {path: _describe(value) for path, value in tree.items()} for part, tree in trees.items()},
        "config": dict(config),
    }
    text = (json.dumps(description, indent=2) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{folder.name}.", dir=folder.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        (new / TENSORS).write_bytes(tensors)
        (new / DESCRIPTION).write_bytes(text)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    return len(tensors) + len(text)


def load_adapter(folder: Path, *, base_fingerprint: str | None, base_source: str = "the base given") -> Adapter:
    """Loads the adapter in `folder`.

    Args:
      folder: the folder of the adapter.
      base_fingerprint: the fingerprint of the base that the adapter is used with. None accepts any base.
      base_source: the name of that base in the error message.

    Raises:
      UserError: the adapter was trained on another base, or a file is missing, corrupt or of another format.
    """
    folder = Path(folder)
    for name in (TENSORS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no adapter: {name} is missing")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        version = description["format"]
        if version not in READERS:
            supported = " and ".join(map(str, READERS))
            raise UserError(
                f"{folder / DESCRIPTION}: format is {version!r}; this version of lora_jax reads {supported}"
            )
        base, digest, config = description["base"], description["sha256"], description["config"]
        source, trained_on = base["source"], base["fingerprint"]
        storage = config.get("base_storage", config.get("base", "auto"))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is corrupt ({type(error).__name__}: {error})") from error
    if base_fingerprint is not None and base_fingerprint != trained_on:
        stored = "" if storage == "auto" else f", stored as {storage}"
        raise UserError(
            f"{folder}: the adapter was trained on {source} ({trained_on[:12]}{stored}), not on {base_source} "
            f"({base_fingerprint[:12]}); load it with the base that it was trained on"
        )
    with (folder / TENSORS).open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise UserError(f"{folder / TENSORS} is corrupt: its sha256 is not the one that {DESCRIPTION} gives")
    try:
        with safe_open(folder / TENSORS, framework="numpy") as opened:
            tensors = {key: jnp.asarray(opened.get_tensor(key)) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        params, constants = READERS[version](description, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder}: {TENSORS} and {DESCRIPTION} do not fit ({type(error).__name__}: {error})"
        ) from error
    return Adapter(params, constants, config, source, trained_on)


Trees = tuple[dict[str, Padded], dict[str, Padded]]  # params, constants


def _read(description: Any, tensors: dict[str, Array]) -> Trees:
    """Reads format 2."""

    def tree(part: str) -> dict[str, Padded]:
        return {
            path: ADAPTERS[value["kind"]](**{field: tensors[f"{part}/{path}/{field}"] for field in value["fields"]})
            for path, value in description[part].items()
        }

    return tree("params"), tree("constants")


def _read_format_1(description: Any, tensors: dict[str, Array]) -> Trees:
    """Reads format 1: a pair of arrays at ``<site>/lora``, one array at other paths, and scales in adapter.json."""
    params: dict[str, Padded] = {}
    for path, fields in description["delta"].items():
        if fields is None:
            params[path] = Replacement(tensors[path])
        else:
            params[_slot(path)] = LowRank(**{field: tensors[f"{path}/{field}"] for field in fields})
    scales = {_slot(path): jnp.asarray(factors, jnp.float32) for path, factors in description["scale"].items()}
    return params, {path: Scaling(scale) for path, scale in scales.items()}


READERS: dict[int, Callable[[Any, dict[str, Array]], Trees]] = {1: _read_format_1, FORMAT: _read}


def _slot(path: str) -> str:
    return f"{path.removesuffix('/lora')}/{SLOT}"


def _fields(value: Padded) -> dict[str, Array]:
    """Returns the arrays of an adapter by their fields; optional fields that are None are omitted."""
    return {field: array for field, array in vars(value).items() if array is not None}


def _describe(value: Padded) -> dict[str, Any]:
    """Returns the entry of an adapter in adapter.json."""
    kind = next(name for name, cls in ADAPTERS.items() if type(value) is cls)
    return {"kind": kind, "fields": sorted(_fields(value))}


def _flat(tree: Tree) -> dict[str, Array]:
    return {f"{path}/{field}": array for path, value in tree.items() for field, array in _fields(value).items()}
