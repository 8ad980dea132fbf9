"""Checkpoints into modules: every tensor used exactly once, every parameter filled exactly once, or an error."""

import contextlib
import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from lora_jax.delta import count, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES, Family
from lora_jax.models.heads import POOLS, Classifier
from lora_jax.weights.sources import resolve


@dataclasses.dataclass(frozen=True)
class Base:
    """A frozen base, ready to be adapted. `parameters` counts the backbone; `fingerprint` covers the whole model."""

    model: Classifier
    tokenizer: Tokenizer
    source: str
    fingerprint: str
    parameters: int


def load_base(source: str, family: str, *, labels: int, pool: str = "mean", dtype: DTypeLike = jnp.float32) -> Base:
    """The model at `source` (see weights/sources.py) as a classifier whose head, ``[hidden_size, labels]``, is zero.

    The tokenizer pads nothing and truncates nothing. Raises UserError for a family that is not in
    `lora_jax.models.FAMILIES`, a folder that holds another family, or a checkpoint that does not fit its config.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family={family!r}: must be one of {', '.join(FAMILIES)}")
    if pool not in POOLS:
        raise UserError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    if labels < 1:
        raise UserError(f"labels={labels}: must be 1 or more")
    row, folder = FAMILIES[family], resolve(source)
    config = _config(folder, family)
    abstract = jax.eval_shape(lambda: row.module(config))
    backbone = fill(
        abstract, folder, row.names, prefix=_prefix(folder, row), dtype=dtype, ignore=row.ignored, renamed=row.renamed
    )
    head = Classifier(backbone, config.hidden_size, labels, pool=pool)
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), head)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{folder / 'tokenizer.json'} is not a readable tokenizer ({error})") from error
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{folder}: tokenizer.json has {tokenizer.get_vocab_size()} tokens, more than config.json's "
            f"vocab_size={config.vocab_size}; they belong to different models"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Base(model, tokenizer, source, fingerprint(model), count(backbone))


def fill(
    abstract: nnx.Module,
    folder: Path,
    names: Mapping[str, str],
    *,
    prefix: str = "",
    dtype: DTypeLike = jnp.float32,
    ignore: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> nnx.Module:
    """`abstract` (from ``jax.eval_shape``) with the safetensors in `folder` for its parameters, as `dtype`.

    `names` maps checkpoint names to paths. A ``{}`` in a name stands for a layer's number: those tensors are stacked
    along a leading axis of layers. A path that ends in ``/kernel`` is transposed, ``[d_out, d_in]`` to
    ``[d_in, d_out]``. `prefix` stands before every name in the checkpoint, `renamed` maps parts of old names to parts
    of today's, and names that fully match a regex of `ignore` may be left unused.

    The host holds what is filled so far and one array more. Raises UserError that lists every tensor missing, unused,
    or of another shape.
    """
    structure = jax.tree.structure(abstract)
    shapes = {path: leaf.shape for path, leaf in parameters(abstract).items()}
    wanted = _wanted(shapes, names, prefix)
    with contextlib.ExitStack() as stack:
        held = _tensors(folder, stack, renamed or {})
        _check(folder, shapes, wanted, held, ignore)
        filled = []
        for path, shape in shapes.items():
            array = np.empty(shape, jnp.dtype(dtype))
            for index, name in wanted[path]:
                value = held[name].read()
                array[index] = value.T if path.endswith("/kernel") else value
            filled.append(jnp.asarray(array))
    return jax.tree_util.tree_unflatten(structure, filled)


def random(abstract: nnx.Module, seed: int, *, std: float = 0.02, dtype: DTypeLike = jnp.float32) -> nnx.Module:
    """`abstract` with kernels and embeddings ~ N(0, std²), scales one and biases zero: for tests and benchmarks."""
    structure = jax.tree.structure(abstract)
    shapes = {path: leaf.shape for path, leaf in parameters(abstract).items()}
    filled = []
    for path, shape in shapes.items():
        kind = path.rsplit("/", 1)[-1]
        if kind in ("kernel", "embedding"):
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
            filled.append(std * jax.random.normal(key, shape, dtype))
        elif kind in ("scale", "bias"):
            filled.append(jnp.full(shape, kind == "scale", dtype))
        else:
            raise ValueError(f"{path}: no rule for {kind!r}; kernel, embedding, scale and bias have one")
    return jax.tree_util.tree_unflatten(structure, filled)


def fingerprint(module: nnx.Module) -> str:
    """sha256 over the path, dtype, shape and bytes of every parameter, in the order of their paths."""
    digest = hashlib.sha256()
    for path, leaf in sorted(parameters(module).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype.name} {leaf.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# ---- config.json


def _config(folder: Path, family: str) -> Any:
    file, row = folder / "config.json", FAMILIES[family]
    try:
        values = json.loads(file.read_text())
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a readable config ({error})") from error
    if kind != family:
        raise UserError(f"{file}: model_type is {kind!r}, but model.family={family!r}; known: {', '.join(FAMILIES)}")
    for key, value in row.fixed.items():
        if values.get(key, value) != value:
            raise UserError(f"{file}: {key}={values[key]!r} is not supported; must be {value!r}")
    fields = [field.name for field in dataclasses.fields(row.config)]
    if missing := [name for name in fields if name not in values]:
        raise UserError(f"{file} has no {', '.join(missing)}")
    try:
        return row.config(**{name: values[name] for name in fields})
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


# ---- safetensors


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor on disk: its name there, its shape, and how to read it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def _files(folder: Path) -> list[Path]:
    """The safetensors of a checkpoint: model.safetensors, the shards of an index, or the only one there is."""
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            held = ", ".join(file.name for file in files) or "none"
            raise UserError(f"{folder}: expected model.safetensors or {index.name}, got {held}")
        return files
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not a readable index ({type(error).__name__}: {error})") from error
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise UserError(f"{folder}: {index.name} names shards that are not there: {', '.join(absent)}")
    return [folder / shard for shard in shards]


def _tensors(folder: Path, stack: contextlib.ExitStack, renamed: Mapping[str, str]) -> dict[str, _Tensor]:
    """Every tensor of a checkpoint by today's name. Nothing is read yet; `stack` closes the files."""
    held: dict[str, _Tensor] = {}
    for file in _files(folder):
        try:
            opened = stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a readable safetensors file ({error})") from error
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            today = name
            for old, new in renamed.items():
                today = today.replace(old, new)
            if today in held:
                raise UserError(f"{folder}: both {held[today].name!r} and {name!r} (in {file.name}) are {today!r}")
            shape = tuple(opened.get_slice(name).get_shape())
            held[today] = _Tensor(name, shape, lambda opened=opened, name=name: opened.get_tensor(name))  # type: ignore[misc]
    return held


def _prefix(folder: Path, row: Family) -> str:
    """The first of the family's prefixes under which the checkpoint holds the most of the family's names."""
    with contextlib.ExitStack() as stack:
        held = _tensors(folder, stack, row.renamed)
    return max(row.prefixes, key=lambda prefix: sum(prefix + name.replace("{}", "0") in held for name in row.names))


def _wanted(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str], prefix: str
) -> dict[str, list[tuple[Any, str]]]:
    """For each path, where in its array (an index) which tensor belongs."""
    by_path = {path: name for name, path in names.items()}
    if len(by_path) != len(names) or set(by_path) != set(shapes):
        odd = sorted(set(by_path) ^ set(shapes)) or "a path twice"
        raise ValueError(f"the table of names and the module differ: {odd}")
    return {
        path: [(layer, prefix + name.replace("{}", str(layer))) for layer in range(shapes[path][0])]
        if "{}" in name
        else [(..., prefix + name)]
        for path, name in by_path.items()
    }


def _check(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, list[tuple[Any, str]]],
    held: Mapping[str, _Tensor],
    ignore: Sequence[str],
) -> None:
    missing, wrong, used = [], [], set()
    for path, parts in wanted.items():
        for index, name in parts:
            used.add(name)
            shape = shapes[path] if index is ... else shapes[path][1:]
            expected = shape[::-1] if path.endswith("/kernel") else shape
            if name not in held:
                missing.append(f"{name} {list(expected)}, for {path}")
            elif held[name].shape != expected:
                wrong.append(f"{held[name].name}: expected {list(expected)}, got {list(held[name].shape)}")
    unused = [
        f"{tensor.name} {list(tensor.shape)}"
        for name, tensor in held.items()
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    if missing or wrong or unused:
        parts_ = {"missing": missing, "unused": unused, "wrong shape": wrong}
        listed = "".join(
            f"\n{what}:" + "".join(f"\n  {line}" for line in lines) for what, lines in parts_.items() if lines
        )
        raise UserError(f"{folder}: the checkpoint does not fit the model that its config.json describes{listed}")
