"""A finished adapter in a folder: its delta at true rank, and what is needed to use it again; never the base.

    delta.safetensors   {"backbone/layers/attn/q/lora/a": [layers, d_in, r], ..., "head/kernel": [d_in, labels]}
    adapter.json        {"format": 1, "base": {"source", "fingerprint"}, "delta": {path: ["a", "b"] or null},
                         "sha256": of delta.safetensors, "scale": {path: [layers]}, "config": method, rank, alpha, ...}

The scale is stored beside the factors, not folded in: A and B are what was trained.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lora_jax.delta import Delta
from lora_jax.errors import UserError

FORMAT = 1
TENSORS, DESCRIPTION = "delta.safetensors", "adapter.json"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What `save_adapter` was given."""

    delta: Delta
    scale: dict[str, Float[Array, " layers"]]
    config: dict[str, Any]
    base_source: str
    base_fingerprint: str


def save_adapter(
    folder: Path,
    delta: Delta,
    scale: Mapping[str, Float[Array, " layers"]],
    *,
    base_source: str,
    base_fingerprint: str,
    config: Mapping[str, Any],
) -> int:
    """Writes an adapter to `folder` and returns its bytes on disk.

    `scale` maps a path of `delta` to one factor a layer; `config` is any JSON. Everything is written beside `folder`
    and renamed into place, so a process that is killed leaves a whole adapter there or none. Raises UserError when
    `folder` exists and holds something other than an adapter: that is not replaced.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {TENSORS, DESCRIPTION}):
        raise UserError(f"{folder} exists and is not an adapter's folder; it will not be replaced, name another")
    if strange := sorted(set(scale) - set(delta)):
        raise ValueError(f"scales for paths that the delta has not: {strange}")
    tensors = save({key: np.asarray(array, order="C") for key, array in _flat(delta).items()})
    description = {
        "format": FORMAT,
        "base": {"source": base_source, "fingerprint": base_fingerprint},
        "delta": {path: sorted(value) if isinstance(value, dict) else None for path, value in delta.items()},
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "scale": {path: np.asarray(factors, np.float32).tolist() for path, factors in scale.items()},
        "config": dict(config),
    }
    text = (json.dumps(description, indent=2) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        complete, replaced = Path(temporary, "new"), Path(temporary, "old")
        complete.mkdir()
        (complete / TENSORS).write_bytes(tensors)
        (complete / DESCRIPTION).write_bytes(text)
        if folder.exists():
            os.replace(folder, replaced)
        try:
            os.replace(complete, folder)
        except OSError:
            if replaced.exists():
                os.replace(replaced, folder)
            raise
    return len(tensors) + len(text)


def load_adapter(folder: Path, *, base_fingerprint: str | None, base_source: str = "the base given") -> Adapter:
    """The adapter in `folder`, to be used on the base of `base_fingerprint`; None takes any base.

    `base_source` only names that base in the error. Raises UserError when the adapter was trained on another base, or
    a file is missing, corrupt, or of another format.
    """
    folder = Path(folder)
    for name in (TENSORS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no adapter: {name} is not there")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        version = description["format"]
        if version != FORMAT:
            raise UserError(f"{folder / DESCRIPTION}: format is {version!r}; this version of lora_jax reads {FORMAT}")
        base, digest, config = description["base"], description["sha256"], description["config"]
        source, trained_on = base["source"], base["fingerprint"]
        stored = "" if config.get("base", "auto") == "auto" else f", stored as {config['base']}"
        slots, scale = description["delta"], {p: np.array(f, np.float32) for p, f in description["scale"].items()}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is corrupt ({type(error).__name__}: {error})") from error
    if base_fingerprint is not None and base_fingerprint != trained_on:
        raise UserError(
            f"{folder}: the adapter was trained on {source} ({trained_on[:12]}{stored}), not on {base_source} "
            f"({base_fingerprint[:12]}); load it with the base that it was trained on"
        )
    with (folder / TENSORS).open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != digest:
        raise UserError(f"{folder / TENSORS} is corrupt: its sha256 is not the one that {DESCRIPTION} gives")
    try:
        with safe_open(folder / TENSORS, framework="numpy") as opened:
            tensors = {key: jnp.asarray(opened.get_tensor(key)) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        delta: Delta = {
            path: tensors[path] if parts is None else {part: tensors[f"{path}/{part}"] for part in parts}
            for path, parts in slots.items()
        }
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: {TENSORS} and {DESCRIPTION} do not fit ({type(error).__name__}: {error})"
        ) from error
    return Adapter(delta, {p: jnp.asarray(factors) for p, factors in scale.items()}, config, source, trained_on)


def _flat(delta: Delta) -> dict[str, Array]:
    flat: dict[str, Array] = {}
    for path, value in delta.items():
        flat |= {f"{path}/{part}": array for part, array in value.items()} if isinstance(value, dict) else {path: value}
    return flat
