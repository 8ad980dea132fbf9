"""Checkpoints into modules: every tensor used exactly once, every parameter filled exactly once, or an error."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from lora_jax.delta import count, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES, masked
from lora_jax.models.quantised import KINDS, quantisable, quantise
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.heads import Paths, as_tuple, check_head, fit
from lora_jax.weights.preprocessing import read_preprocessing
from lora_jax.weights.sources import gguf_in, resolve
from lora_jax.weights.special import Special, read_special
from lora_jax.weights.tensors import Tensor, tensors_of

# What stands there is no checkpoint's: it starts anew (methods/start.py).
NEW = "head/"
ALIGNMENT = 64  # bytes


# Puts a parameter, at a path, where it is to live.
Put = Callable[[str, np.ndarray], jax.Array]


def put_on_default_device(path: str, array: np.ndarray) -> jax.Array:
    """Puts a parameter where JAX puts arrays by default."""
    return jnp.asarray(array)


@dataclasses.dataclass(frozen=True)
class Base:
    """A frozen base, ready to be adapted.

    `parameters` counts what the checkpoint filled: the backbone, and an `lm_head`. `fingerprint` covers the whole
    model.
    """

    model: Any  # a backbone with a head on it: see load_base
    tokenizer: Any  # a Tokenizer or, where the family reads pictures, their Preprocessing
    source: str
    fingerprint: str
    parameters: int
    special: Special
    config: Mapping[str, Any]  # the checkpoint's config.json


def load_base(
    source: str,
    family: str,
    *,
    labels: int | None = None,
    pool: str = "mean",
    dtype: DTypeLike = jnp.float32,
    base_storage: Literal["auto", "f32", "bf16", "int8", "nf4"] = "auto",
    head: Literal["classifier", "token_classifier", "embedding", "causal", "masked"] = "classifier",
    put: Put = put_on_default_device,
) -> Base:
    """The model at `source` (see weights/sources.py), with a head on it.

    |head|module|what it needs|
    |-|-|-|
    |classifier|Classifier; ImageClassifier for pictures|`labels`: classes, or a regression's values; `pool`, for texts|
    |token_classifier|TokenClassifier|`labels`|
    |embedding|SentenceEncoder|`pool`|
    |causal|CausalLM|a decoder|
    |masked|MaskedLM|an encoder of texts, and a checkpoint that was trained so|

    A head with labels is zero: no checkpoint's own is read. The tokenizer pads nothing and truncates nothing.
    `base_storage` says how the parameters are stored: ``auto`` as `dtype`, ``f32`` or ``bf16`` as that; ``int8`` and
    ``nf4`` the blocks' kernels as models/quantised.py has it, and the rest as `dtype`. `put` puts a parameter where it
    is to live.

    Raises UserError for a family that is not in `lora_jax.models.FAMILIES` or cannot carry that head, a folder that
    holds another family, or a checkpoint that does not fit its config.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family={family!r}: must be one of {', '.join(FAMILIES)}")
    row = FAMILIES[family]
    dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}.get(base_storage, dtype)
    kind = base_storage if base_storage in KINDS else None
    check_head(family, head, labels, pool)
    folder = resolve(source)
    config, values = _config(folder, family, {**row.fixed, **(masked.FIXED if head == "masked" else {})})
    fitting = fit(row, config, set(tensors_of(folder, row.renamed)), head, labels=labels or 0, pool=pool)
    model = fill(
        fitting.module,
        folder,
        fitting.names,
        dtype=dtype,
        kind=kind,
        ignore=fitting.ignored,
        renamed=row.renamed,
        transpose=row.transpose,
        groups=row.groups(config),
        put=put,
    )
    reader: Any = read_preprocessing(folder) if row.images else _tokenizer(folder, config.vocab_size)
    loaded = {path: leaf for path, leaf in parameters(model).items() if not path.startswith(NEW)}
    special = Special() if row.images else read_special(folder, reader)
    return Base(model, reader, source, fingerprint(model), count(loaded), special, values)


def _tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    file = gguf_in(folder) or folder / "tokenizer.json"
    try:
        tokenizer = open_gguf(file).tokenizer() if file.suffix == ".gguf" else Tokenizer.from_file(str(file))
    except UserError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file} is not a readable tokenizer ({error})") from error
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"{folder}: {file.name} has {tokenizer.get_vocab_size()} tokens, more than config.json's "
            f"vocab_size={vocab_size}; they belong to different models"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def fill(
    abstract: nnx.Module,
    folder: Path,
    names: Mapping[str, Paths],
    *,
    prefix: str = "",
    dtype: DTypeLike = jnp.float32,
    kind: str | None = None,
    ignore: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    transpose: bool = True,
    groups: int = 1,
    put: Put = put_on_default_device,
) -> nnx.Module:
    """`abstract` (from ``jax.eval_shape``) with the tensors in `folder` for its parameters, as `dtype`.

    `names` maps checkpoint names to paths. A ``{}`` in a name stands for a layer's number: those tensors are stacked
    along a leading axis of layers. Several paths share a fused tensor: equal parts of its outputs, in that order; with
    `groups`, of each of so many equal stretches of its outputs. With `transpose`, a path that ends in ``/kernel`` is
    transposed, ``[d_out, d_in]`` to ``[d_in, d_out]``; a convolution's, ``[d_out, channels, ...]``, is flattened before
    that. `prefix` stands before every name in the checkpoint, `renamed` maps parts of old names to parts of today's,
    and names that fully match a regex of `ignore` may be left unused. What stands under ``head/`` is zero. With `kind`,
    the blocks' kernels are quantised, a layer at a time: none of them is anywhere whole at full width.

    The host holds what is filled so far and a few rows more. Raises UserError that lists every tensor missing, unused,
    or of another shape.
    """
    structure = jax.tree.structure(abstract)
    shapes = {path: leaf.shape for path, leaf in parameters(abstract).items()}
    wanted = _wanted(shapes, names, prefix)
    turned = {path for path in shapes if transpose and path.endswith("/kernel")}
    held = tensors_of(folder, renamed or {})
    _check(folder, shapes, wanted, held, ignore, turned)
    filled: list[Any] = []
    for path, shape in shapes.items():
        pieces = wanted.get(path, [])
        if kind is not None and quantisable(path):
            layers = []
            for _, name, part, parts in pieces:
                layer = np.empty(shape[1:], jnp.dtype(dtype))
                _copy(held[name], layer, part, parts, groups, path in turned)
                layers.append(quantise(jnp.asarray(layer), kind))
            filled.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
            continue
        array = _zeros(shape, jnp.dtype(dtype))
        for index, name, part, parts in pieces:
            _copy(held[name], array[index], part, parts, groups, path in turned)
        filled.append(put(path, array))
    return jax.tree_util.tree_unflatten(structure, filled)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Aligned as XLA wants it: on a CPU ``device_put`` takes such an array as its own, and copies any other."""
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _copy(tensor: Tensor, into: np.ndarray, part: int, parts: int, groups: int, turned: bool) -> None:
    """The `part`-th of `parts` of a tensor's outputs, in each of a fused one's `groups`, `into` place.

    A few rows at a time, transposed if `turned`.
    """
    groups = groups if parts > 1 else 1
    width = into.shape[-1] // groups
    for group in range(groups):
        own, start = into[..., group * width : (group + 1) * width], (group * parts + part) * width
        if turned:
            for rows, value in tensor.chunks(start, start + width):
                own.T[rows] = value.reshape(len(value), -1)
        else:
            for rows, value in tensor.chunks():
                own[rows] = value[..., start : start + width]


def random(
    abstract: nnx.Module, seed: int, *, std: float = 0.02, dtype: DTypeLike = jnp.float32, kind: str | None = None
) -> nnx.Module:
    """`abstract` with kernels and embeddings ~ N(0, std²), scales one and biases zero: for tests and benchmarks.

    With `kind`, the blocks' kernels are quantised as they are drawn, a layer at a time.
    """
    structure = jax.tree.structure(abstract)
    shapes = {path: leaf.shape for path, leaf in parameters(abstract).items()}
    filled: list[Any] = []
    for path, shape in shapes.items():
        name = path.rsplit("/", 1)[-1]
        if name in ("kernel", "embedding"):
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
            if kind is not None and quantisable(path):
                keys, draw = jax.random.split(key, shape[0]), functools.partial(_draw, shape[1:], std, dtype)
                filled.append(jax.lax.map(lambda key, draw=draw: quantise(draw(key), kind), keys))
            else:
                filled.append(_draw(shape, std, dtype, key))
        elif name in ("scale", "bias"):
            filled.append(jnp.full(shape, name == "scale", dtype))
        else:
            raise ValueError(f"{path}: no rule for {name!r}; kernel, embedding, scale and bias have one")
    return jax.tree_util.tree_unflatten(structure, filled)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(shape: tuple[int, ...], std: float, dtype: DTypeLike, key: jax.Array) -> jax.Array:
    return std * jax.random.normal(key, shape, dtype)


def fingerprint(module: nnx.Module) -> str:
    """sha256 over the path, dtype, shape and bytes of every parameter, in the order of their paths."""
    digest = hashlib.sha256()
    for path, leaf in sorted(parameters(module).items()):
        for keys, part in jax.tree_util.tree_leaves_with_path(leaf):  # a quantised kernel has several
            array = np.ascontiguousarray(part)
            digest.update(f"{path}{jax.tree_util.keystr(keys)} {array.dtype.name} {part.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# ---- config.json


def _config(folder: Path, family: str, fixed: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The family's config, and all that the file says."""
    file, row = gguf_in(folder) or folder / "config.json", FAMILIES[family]
    try:
        values = open_gguf(file).config() if file.suffix == ".gguf" else json.loads(file.read_text())
        kind = values.get("model_type")
    except UserError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a readable config ({error})") from error
    if kind != family:
        raise UserError(f"{file}: model_type is {kind!r}, but model.family={family!r}; known: {', '.join(FAMILIES)}")
    for key, value in fixed.items():
        if values.get(key) not in (None, value):
            raise UserError(f"{file}: {key}={values[key]!r} is not supported; must be {value!r}")
    fields = dataclasses.fields(row.config)
    optional = {field.name for field in fields if row.defaults and field.default is not dataclasses.MISSING}
    if missing := [field.name for field in fields if field.name not in optional and field.name not in values]:
        raise UserError(f"{file} has no {', '.join(missing)}")
    try:
        return row.config(**{field.name: values[field.name] for field in fields if field.name in values}), values
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


# ---- names


def _wanted(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, Paths], prefix: str
) -> dict[str, list[tuple[Any, str, int, int]]]:
    """For each path, where in its array (an index) which tensor belongs, and which part of how many of that."""
    by_path = {
        path: (name, i, len(as_tuple(paths))) for name, paths in names.items() for i, path in enumerate(as_tuple(paths))
    }
    expected = {path for path in shapes if not path.startswith(NEW)}
    if len(by_path) != sum(len(as_tuple(paths)) for paths in names.values()) or set(by_path) != expected:
        odd = sorted(set(by_path) ^ expected) or "a path twice"
        raise ValueError(f"the table of names and the module differ: {odd}")
    return {
        path: [(layer, prefix + name.replace("{}", str(layer)), part, parts) for layer in range(shapes[path][0])]
        if "{}" in name
        else [(..., prefix + name, part, parts)]
        for path, (name, part, parts) in by_path.items()
    }


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's kernel is a linear layer's over windows, each of them one vector."""
    return (shape[0], math.prod(shape[1:]))


def _check(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, list[tuple[Any, str, int, int]]],
    held: Mapping[str, Tensor],
    ignore: Sequence[str],
    turned: set[str],
) -> None:
    missing, wrong, used = [], [], set()
    for path, pieces in wanted.items():
        for index, name, part, parts in pieces:
            if part:  # the first of a fused tensor's paths speaks for all
                continue
            used.add(name)
            shape = shapes[path] if index is ... else shapes[path][1:]
            shape = (*shape[:-1], shape[-1] * parts)
            expected = shape[::-1] if path in turned else shape
            if name not in held:
                missing.append(f"{name} {list(expected)}, for {path}")
            elif (_flat(held[name].shape) if path in turned else held[name].shape) != expected:
                wrong.append(f"{held[name].name}: expected {list(expected)}, got {list(held[name].shape)}")
    unused = [
        f"{tensor.name} {list(tensor.shape)}"
        for name, tensor in held.items()
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    if missing or wrong or unused:
        lists = {"missing": missing, "unused": unused, "wrong shape": wrong}
        listed = "".join(
            f"\n{what}:" + "".join(f"\n  {line}" for line in lines) for what, lines in lists.items() if lines
        )
        raise UserError(f"{folder}: the checkpoint does not fit the model that its config.json describes{listed}")
