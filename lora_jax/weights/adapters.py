"""Saves and loads adapters: a folder with the trained parameters at true sizes, the constants and the settings.

    delta.safetensors   {"params/backbone/layers/attn/q/adapter/a": [layers, d_in, r], "params/head/kernel/value": ...,
                         "constants/backbone/layers/attn/q/adapter/scale": [layers]}
    adapter.json        {"format": 3, "base": {"source", "fingerprint"}, "tensors_sha256": of delta.safetensors,
                         "params": {path: {"kind": "low_rank", "fields": ["a", "b"]}}, "constants": likewise,
                         "config": method and its settings, rank, alpha, ..., "sha256": of the rest of this object}

The base is not saved. A and B are saved as trained: the scale is a separate constant. `load_adapter` also reads format
2, whose "sha256" is that of delta.safetensors, and format 1, which lora_jax wrote until November 2026 for LoRA and full
fine-tuning.
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
import pydantic
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lora_jax.adapters import ADAPTERS, Padded
from lora_jax.delta import SLOT
from lora_jax.errors import UserError, message_of, shown
from lora_jax.records import TEMPORARY
from lora_jax.records.sealed import SEAL, seal, unseal
from lora_jax.weights.json_file import read_object

FORMAT = 3
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
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        **{part: {path: _describe(value) for path, value in tree.items()} for part, tree in trees.items()},
        "config": dict(config),
    }
    description = json.loads(json.dumps(description))  # `seal` would write what is not JSON as text
    text = (json.dumps(seal(description), indent=2) + "\n").encode()
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
    file = folder / DESCRIPTION
    described = _read_description(file)
    base, config = described.base, described.config
    if base_fingerprint is not None and base_fingerprint != base.fingerprint:
        storage = config.get("base_storage", config.get("base", "auto"))
        stored = "" if storage == "auto" else f", stored as {str(storage)[:20]}"
        raise UserError(
            f"{folder}: the adapter was trained on {base.source} ({base.fingerprint[:12]}{stored}), not on "
            f"{base_source} ({base_fingerprint[:12]}); load it with the base that it was trained on"
        )
    with (folder / TENSORS).open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if actual != described.tensors_sha256:
        raise UserError(f"{folder / TENSORS} is corrupt: its sha256 is not the one that {DESCRIPTION} gives")
    try:
        with safe_open(folder / TENSORS, framework="numpy") as tensors_file:
            names = {name: described.renamed.get(name, name) for name in tensors_file.keys()}  # noqa: SIM118 (not a dict)
            tensors = {now: jnp.asarray(tensors_file.get_tensor(name)) for name, now in names.items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / TENSORS} is not a readable safetensors file ({message_of(error)})") from error
    tensors |= {name: jnp.asarray(factors, jnp.float32) for name, factors in described.scales.items()}
    params = _make(described.params, "params", tensors, folder)
    constants = _make(described.constants, "constants", tensors, folder)
    if tensors:
        raise UserError(f"{folder}: {DESCRIPTION} does not describe the tensor {next(iter(tensors))} of {TENSORS}")
    return Adapter(params, constants, config, base.source, base.fingerprint)


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)


class _Entry(_Model):
    kind: str
    fields: list[str]


class _Base(_Model):
    source: str
    fingerprint: str


class _Description(_Model):
    """The content of adapter.json: format 3, without its hash."""

    base: _Base
    tensors_sha256: str
    params: dict[str, _Entry]
    constants: dict[str, _Entry]
    config: dict[str, Any]
    renamed: dict[str, str] = {}
    scales: dict[str, list[float]] = {}  # format 1: tensors that are in adapter.json


class _Format1(_Model):
    """Format 1: a pair of arrays at ``<site>/lora``, one array at other paths, and scales in adapter.json."""

    base: _Base
    sha256: str
    delta: dict[str, list[str] | None]
    scale: dict[str, list[float]]
    config: dict[str, Any]


def _read_format_3(values: dict[str, Any], file: Path) -> _Description:
    return _Description.model_validate(unseal(values, where=str(file)))


def _read_format_2(values: dict[str, Any], file: Path) -> _Description:
    return _Description.model_validate({**values, "tensors_sha256": values.get(SEAL)})


def _read_format_1(values: dict[str, Any], file: Path) -> _Description:
    old = _Format1.model_validate(values)
    params: dict[str, _Entry] = {}
    renamed: dict[str, str] = {}
    for path, fields in old.delta.items():
        if fields is None:
            params[path] = _Entry(kind="replacement", fields=["value"])
            renamed[path] = f"params/{path}/value"
        else:
            params[_slot(path)] = _Entry(kind="low_rank", fields=fields)
            renamed |= {f"{path}/{field}": f"params/{_slot(path)}/{field}" for field in fields}
    return _Description(
        base=old.base,
        tensors_sha256=old.sha256,
        params=params,
        constants={_slot(path): _Entry(kind="scaling", fields=["scale"]) for path in old.scale},
        config=old.config,
        renamed=renamed,
        scales={f"constants/{_slot(path)}/scale": factors for path, factors in old.scale.items()},
    )


READERS: dict[int, Callable[[dict[str, Any], Path], _Description]] = {
    1: _read_format_1,
    2: _read_format_2,
    FORMAT: _read_format_3,
}


def _read_description(file: Path) -> _Description:
    """Reads adapter.json of any format. Raises UserError if it is damaged, malformed or of another format."""
    values = read_object(file)
    version = values.get("format")
    if type(version) is not int or version not in READERS:
        supported = ", ".join(map(str, READERS))
        raise UserError(f"{file}: format is {shown(version)}; this version of lora_jax reads {supported}")
    try:
        return READERS[version](values, file)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} is corrupt: {key}={shown(first['input'])}: {first['msg']}") from None


def _make(entries: Mapping[str, _Entry], part: str, tensors: dict[str, Array], folder: Path) -> dict[str, Padded]:
    """Makes the adapters of one part, and takes their arrays out of `tensors`.

    Raises:
      UserError: a kind or a field does not exist, an array is missing, or an array is not what its field declares.
    """
    made: dict[str, Padded] = {}
    for path, entry in entries.items():
        if entry.kind not in ADAPTERS:
            raise UserError(
                f"{folder / DESCRIPTION}: {path}: kind={shown(entry.kind)}: must be one of {', '.join(ADAPTERS)}"
            )
        kind = ADAPTERS[entry.kind]
        fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]  # `adapter` makes every kind a dataclass
        required = {field.name for field in fields if field.default is dataclasses.MISSING}
        if not required <= set(entry.fields) <= {field.name for field in fields}:
            names = ", ".join(field.name for field in fields)
            raise UserError(
                f"{folder / DESCRIPTION}: {path}: fields={shown(entry.fields)}: must be of {names}, with "
                f"{', '.join(sorted(required))}"
            )
        keys = {field: f"{part}/{path}/{field}" for field in entry.fields}
        if missing := [key for key in keys.values() if key not in tensors]:
            raise UserError(f"{folder}: {DESCRIPTION} and {TENSORS} do not fit: there is no tensor {missing[0]}")
        made[path] = kind(**{field: tensors.pop(key) for field, key in keys.items()})
        made[path].check(where=f"{folder / TENSORS}: {part}/{path}")
    return made


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
