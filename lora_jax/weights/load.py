"""Checkpoints into modules: every tensor used exactly once, every parameter filled exactly once, or an error."""

import contextlib
import dataclasses
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
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from lora_jax.data.images import read_preprocessing
from lora_jax.delta import count, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES, Family
from lora_jax.models.causal import CausalLM
from lora_jax.models.heads import POOLS, Classifier, ImageClassifier
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.sources import gguf_in, resolve

# Where a tensor of a checkpoint goes: a path, or several that share it.
Paths = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Base:
    """A frozen base, ready to be adapted.

    `parameters` counts what the checkpoint filled: the backbone, and a decoder's own `lm_head`. `fingerprint` covers
    the whole model.
    """

    model: Any  # a Classifier, a CausalLM or an ImageClassifier
    tokenizer: Any  # a Tokenizer or, where the family reads pictures, their Preprocessing
    source: str
    fingerprint: str
    parameters: int


def load_base(
    source: str,
    family: str,
    *,
    labels: int | None = None,
    pool: str = "mean",
    dtype: DTypeLike = jnp.float32,
    head: Literal["classifier", "causal"] = "classifier",
) -> Base:
    """The model at `source` (see weights/sources.py), as a classifier or a causal language model.

    A classifier's head is zero; `labels` and `pool` concern it alone (and `pool` not one of images, which looks at the
    class token). The tokenizer pads nothing and truncates nothing. Raises UserError for a family that is not in
    `lora_jax.models.FAMILIES` or cannot carry that head, a folder that holds another family, or a checkpoint that does
    not fit its config.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family={family!r}: must be one of {', '.join(FAMILIES)}")
    row = FAMILIES[family]
    if head == "causal" and not row.causal:
        able = ", ".join(name for name, row in FAMILIES.items() if row.causal)
        raise UserError(f"model.family={family!r} is no causal language model; must be one of {able}")
    if head == "classifier":
        _check_classifier(family, labels, "mean" if row.images else pool)
    folder = resolve(source)
    config = _config(folder, family)
    names, ignored, prefix = dict(row.names), row.ignored, _prefix(folder, row)
    make = row.module
    if head == "causal":
        names = {prefix + name: _below_backbone(path) for name, path in names.items()}
        names["lm_head.weight"] = "lm_head/kernel"
        prefix, make = "", lambda config: CausalLM(row.module(config))
    # A decoder's own lm_head has no place in a classifier, nor a stored copy of a tied one anywhere.
    if row.causal and (head == "classifier" or config.tie_word_embeddings):
        ignored = (*ignored, r"lm_head\.weight")
    abstract = jax.eval_shape(lambda: make(config))
    filled = fill(
        abstract,
        folder,
        _present(names, abstract),
        prefix=prefix,
        dtype=dtype,
        ignore=ignored,
        renamed=row.renamed,
        transpose=row.transpose,
    )
    reader = read_preprocessing(folder) if row.images else _tokenizer(folder, config.vocab_size)
    model = filled
    if row.images:
        model = ImageClassifier(filled, config.hidden_size, labels or 0)
    elif head == "classifier":
        model = Classifier(filled, config.hidden_size, labels or 0, pool=pool, activation=row.activation)
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    return Base(model, reader, source, fingerprint(model), count(filled))


def _check_classifier(family: str, labels: int | None, pool: str) -> None:
    if pool not in POOLS:
        raise UserError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    if pool == "first" and not hasattr(FAMILIES[family].module, "pool_first"):
        raise UserError(f"pool='first': {family} has no pooler; must be mean or last")
    if labels is None or labels < 1:
        raise UserError(f"labels={labels}: must be 1 or more")


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
    ignore: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    transpose: bool = True,
) -> nnx.Module:
    """`abstract` (from ``jax.eval_shape``) with the tensors in `folder` for its parameters, as `dtype`.

    `names` maps checkpoint names to paths. A ``{}`` in a name stands for a layer's number: those tensors are stacked
    along a leading axis of layers. Several paths share a fused tensor: equal parts of its outputs, in that order. With
    `transpose`, a path that ends in ``/kernel`` is transposed, ``[d_out, d_in]`` to ``[d_in, d_out]``; a convolution's,
    ``[d_out, channels, ...]``, is flattened before that. `prefix` stands before every name in the checkpoint, `renamed`
    maps parts of old names to parts of today's, and names that fully match a regex of `ignore` may be left unused.

    The host holds what is filled so far and one array more. Raises UserError that lists every tensor missing, unused,
    or of another shape.
    """
    structure = jax.tree.structure(abstract)
    shapes = {path: leaf.shape for path, leaf in parameters(abstract).items()}
    wanted = _wanted(shapes, names, prefix)
    turned = {path for path in shapes if transpose and path.endswith("/kernel")}
    with contextlib.ExitStack() as stack:
        held = _tensors(folder, stack, renamed or {})
        _check(folder, shapes, wanted, held, ignore, turned)
        filled = []
        for path, shape in shapes.items():
            array = np.empty(shape, jnp.dtype(dtype))
            for index, name, part, parts in wanted[path]:
                value = held[name].read()
                value = value.reshape(_flat(value.shape)).T if path in turned else value
                width = value.shape[-1] // parts
                array[index] = value[..., part * width : (part + 1) * width]
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
    for key, value in row.fixed.items():
        if values.get(key) not in (None, value):
            raise UserError(f"{file}: {key}={values[key]!r} is not supported; must be {value!r}")
    fields = dataclasses.fields(row.config)
    optional = {field.name for field in fields if row.defaults and field.default is not dataclasses.MISSING}
    if missing := [field.name for field in fields if field.name not in optional and field.name not in values]:
        raise UserError(f"{file} has no {', '.join(missing)}")
    try:
        return row.config(**{field.name: values[field.name] for field in fields if field.name in values})
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
    if file := gguf_in(folder):
        return {name: _Tensor(name, shape, read) for name, (shape, read) in open_gguf(file).tensors().items()}
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


def _below_backbone(paths: Paths) -> Paths:
    return f"backbone/{paths}" if isinstance(paths, str) else tuple(f"backbone/{path}" for path in paths)


def _paths(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _present(names: Mapping[str, Paths], abstract: nnx.Module) -> dict[str, Paths]:
    """The names whose paths this configuration has: a family's table lists those of all its configurations."""
    shapes = parameters(abstract)
    return {name: paths for name, paths in names.items() if any(path in shapes for path in _paths(paths))}


def _wanted(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, Paths], prefix: str
) -> dict[str, list[tuple[Any, str, int, int]]]:
    """For each path, where in its array (an index) which tensor belongs, and which part of how many of that."""
    by_path = {
        path: (name, i, len(_paths(paths))) for name, paths in names.items() for i, path in enumerate(_paths(paths))
    }
    if len(by_path) != sum(len(_paths(paths)) for paths in names.values()) or set(by_path) != set(shapes):
        odd = sorted(set(by_path) ^ set(shapes)) or "a path twice"
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
    held: Mapping[str, _Tensor],
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
