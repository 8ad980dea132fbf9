"""Loads checkpoints into modules. Every tensor is used exactly once and every parameter is filled exactly once."""

import dataclasses
import functools
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
from lora_jax.errors import UserError, message_of
from lora_jax.models import FAMILIES, masked
from lora_jax.models.quantised import KINDS, quantisable, quantise
from lora_jax.weights.fingerprint import NEW, hash_backbone, hash_head
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.heads import Paths, as_tuple, check_head, fit
from lora_jax.weights.json_file import read_text
from lora_jax.weights.model_config import read_config
from lora_jax.weights.preprocessing import read_preprocessing
from lora_jax.weights.sources import gguf_in, resolve
from lora_jax.weights.special import Special, read_special
from lora_jax.weights.tensors import FLOATS, Tensor, tensors_of

ALIGNMENT = 64  # bytes
MOST_LISTED = 40  # tensors of one problem, in a message

LARGEST_TOKENIZER = 2**28  # bytes

# Puts the parameter at a path on a device.
Put = Callable[[str, np.ndarray], jax.Array]


def put_on_default_device(path: str, array: np.ndarray) -> jax.Array:
    """Puts a parameter where JAX puts arrays by default, as a base that is loaded by itself wants it.

    A sweep passes ``train.sharding.put_parameter`` instead.
    """
    return jax.device_put(array)


@dataclasses.dataclass(frozen=True)
class Base:
    """A frozen base.

    Attributes:
      model: a backbone with a head on it (see `load_base`).
      tokenizer: a Tokenizer, or the Preprocessing of an image model.
      source: the URI of the checkpoint.
      fingerprint: the fingerprint of the whole model.
      parameters: the number of parameters that the checkpoint filled: the backbone, and the `lm_head` if there is one.
      special: the special tokens and the chat template.
      config: the content of the checkpoint's config.json.
      backbone_digest: the state of the fingerprint's hash after the backbone, to which a head's parameters are added.
    """

    model: Any
    tokenizer: Any
    source: str
    fingerprint: str
    parameters: int
    special: Special
    config: Mapping[str, Any]
    backbone_digest: Any = None


def with_labels(base: Base, labels: int, *, put: Put = put_on_default_device) -> Base:
    """Returns `base` with a head for another number of labels. It shares the backbone.

    Args:
      base: a base whose head has labels.
      labels: the number of the new head's outputs.
      put: puts a parameter on a device.
    """
    model = jax.tree.map(lambda leaf: leaf, base.model)
    head = model.head
    for name in ("kernel", "bias"):
        old = getattr(head, name).get_value()
        new = np.zeros((*old.shape[:-1], labels), old.dtype)
        setattr(head, name, nnx.Param(put(f"{NEW}{name}", new)))
    return dataclasses.replace(base, model=model, fingerprint=hash_head(base.backbone_digest, model))


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
    """Loads the model at `source` (see weights/sources.py), and puts a head on it.

    |head|module|what it needs|
    |-|-|-|
    |classifier|Classifier; ImageClassifier for images|`labels`: classes, or a regression's values; `pool`, for texts|
    |token_classifier|TokenClassifier|`labels`|
    |embedding|SentenceEncoder|`pool`|
    |causal|CausalLM|a decoder|
    |masked|MaskedLM|an encoder of texts, and a checkpoint with such a head|

    A head with labels is zero. It is not read from the checkpoint. The tokenizer neither pads nor truncates.

    Args:
      source: the URI of the checkpoint.
      family: a key of `lora_jax.models.FAMILIES`.
      labels: the number of the head's outputs.
      pool: the pooling: ``first``, ``last`` or ``mean``.
      dtype: the dtype of parameters that `base_storage` does not determine.
      base_storage: how parameters are stored. ``auto``: as `dtype`; ``f32`` and ``bf16``: in that dtype; ``int8`` and
        ``nf4``: the blocks' kernels are quantised (see models/quantised.py), and the rest is stored as `dtype`.
      head: the name of the head.
      put: puts a parameter on a device.

    Raises:
      UserError: the family does not exist or does not support the head, the checkpoint is of another family, or the
        checkpoint does not fit its config.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family={family!r}: must be one of {', '.join(FAMILIES)}")
    row = FAMILIES[family]
    dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}.get(base_storage, dtype)
    kind = base_storage if base_storage in KINDS else None
    check_head(family, head, labels, pool)
    folder = resolve(source)
    config, values = read_config(folder, family, {**row.fixed, **(masked.FIXED if head == "masked" else {})})
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
    special = Special() if row.images else read_special(folder, reader, config.vocab_size)
    digest = hash_backbone(model)
    return Base(model, reader, source, hash_head(digest, model), count(loaded), special, values, digest)


def _tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    file = gguf_in(folder) or folder / "tokenizer.json"
    try:
        if file.suffix == ".gguf":
            tokenizer = open_gguf(file).tokenizer()
        else:
            tokenizer = Tokenizer.from_str(read_text(file, largest=LARGEST_TOKENIZER))
        ids = tokenizer.get_vocab().values()
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{file} is not a readable tokenizer ({message_of(error)})") from error
    if tokenizer.get_vocab_size() > vocab_size or max(ids, default=0) >= vocab_size:
        raise UserError(
            f"{folder}: {file.name} has {tokenizer.get_vocab_size()} tokens and the largest id is {max(ids)}, more "
            f"than config.json's vocab_size={vocab_size}; they belong to different models"
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
    """Fills an abstract module with the tensors in `folder`.

    Parameters under ``head/`` are zero. The host holds the parameters filled so far and a few rows more.

    Args:
      abstract: the module, from ``jax.eval_shape``.
      folder: the folder of the checkpoint.
      names: paths by the checkpoint's names. A ``{}`` in a name stands for a layer's number, and those tensors are
        stacked along a leading axis of layers. Several paths share a fused tensor: each gets an equal part of its
        outputs, in that order.
      prefix: the prefix of every name in the checkpoint.
      dtype: the dtype of the parameters.
      kind: a quantisation of the blocks' kernels, or None. Kernels are quantised one layer at a time, so a whole
        kernel never exists at full width.
      ignore: regexes. Tensors whose names fully match one may remain unused.
      renamed: parts of current names by parts of old names.
      transpose: whether kernels are transposed, from ``[d_out, d_in]`` to ``[d_in, d_out]``. A convolution's kernel,
        ``[d_out, channels, ...]``, is flattened first.
      groups: the number of equal groups of a fused tensor's outputs. Each group is divided among the paths.
      put: puts a parameter on a device.

    Raises:
      UserError: tensors are missing, unused, or of another shape or dtype, which the message lists; or one has NaN or
        infinity.
    """
    structure = jax.tree.structure(abstract)
    shapes = {path: leaf.shape for path, leaf in parameters(abstract).items()}
    pieces_by_path = _pieces_by_path(shapes, names, prefix)
    transposed = {path for path in shapes if transpose and path.endswith("/kernel")}
    stored = tensors_of(folder, renamed or {})
    _check(folder, shapes, pieces_by_path, stored, ignore, transposed)
    filled: list[Any] = []
    for path, shape in shapes.items():
        pieces = pieces_by_path.get(path, [])
        if kind is not None and quantisable(path):
            layers = []
            for _, name, part, parts in pieces:
                layer = np.empty(shape[1:], jnp.dtype(dtype))
                _copy(stored[name], layer, part, parts, groups, path in transposed)
                layers.append(quantise(jnp.asarray(layer), kind))
            filled.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
            continue
        array = _zeros(shape, jnp.dtype(dtype))
        for index, name, part, parts in pieces:
            _copy(stored[name], array[index], part, parts, groups, path in transposed)
        filled.append(put(path, array))
    return jax.tree_util.tree_unflatten(structure, filled)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns a zero array with XLA's alignment. On a CPU ``device_put`` uses such an array, and copies any other."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _copy(tensor: Tensor, into: np.ndarray, part: int, parts: int, groups: int, transposed: bool) -> None:
    """Copies part `part` of `parts` of a tensor's outputs to `into`, a few rows at a time.

    Args:
      tensor: the tensor on disk.
      into: the array to be filled, the outputs on its last axis.
      part: the index of the part.
      parts: the number of parts of the tensor.
      groups: the number of groups of the outputs of a fused tensor. The part is taken from each.
      transposed: whether the tensor has its outputs on the first axis.
    """
    groups = groups if parts > 1 else 1
    width = into.shape[-1] // groups
    for group in range(groups):
        target, start = into[..., group * width : (group + 1) * width], (group * parts + part) * width
        if transposed:
            for rows, value in tensor.chunks(start, start + width):
                target.T[rows] = _finite(tensor, value.reshape(len(value), -1), target.dtype)
        else:
            for rows, value in tensor.chunks():
                target[rows] = _finite(tensor, value[..., start : start + width], target.dtype)


def _finite(tensor: Tensor, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns rows of a tensor as `dtype`. Raises UserError if they have NaN or infinity."""
    with np.errstate(over="ignore"):
        value = value.astype(dtype, copy=False)
    if dtype.itemsize == 2:  # ten times as fast as NumPy's isfinite: all bits of the exponent are 1, as infinity's
        infinity = np.array(np.inf, dtype).view(np.uint16)
        finite = not ((value.view(np.uint16) & infinity) == infinity).any()
    else:
        finite = np.isfinite(value).all()
    if not finite:
        raise UserError(
            f"{tensor.file}: the tensor {tensor.name} has NaN or infinity as {dtype.name}; the file is damaged or its "
            f"training diverged, so use another copy"
        )
    return value


def random(
    abstract: nnx.Module, seed: int, *, std: float = 0.02, dtype: DTypeLike = jnp.float32, kind: str | None = None
) -> nnx.Module:
    """Fills an abstract module with random weights, for tests and benchmarks.

    Kernels and embeddings are drawn from N(0, std²), scales are one and biases are zero.

    Args:
      abstract: the module, from ``jax.eval_shape``.
      seed: the seed.
      std: the standard deviation.
      dtype: the dtype of the parameters.
      kind: a quantisation of the blocks' kernels, or None. Kernels are drawn and quantised one layer at a time.
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


# ---- names


def _pieces_by_path(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, Paths], prefix: str
) -> dict[str, list[tuple[Any, str, int, int]]]:
    """Returns the pieces of each path: (index in its array, tensor name, part, number of parts of the tensor)."""
    by_path = {
        path: (name, i, len(as_tuple(paths))) for name, paths in names.items() for i, path in enumerate(as_tuple(paths))
    }
    expected = {path for path in shapes if not path.startswith(NEW)}
    if len(by_path) != sum(len(as_tuple(paths)) for paths in names.values()) or set(by_path) != expected:
        difference = sorted(set(by_path) ^ expected) or "a path twice"
        raise ValueError(f"the table of names and the module differ: {difference}")
    return {
        path: [(layer, prefix + name.replace("{}", str(layer)), part, parts) for layer in range(shapes[path][0])]
        if "{}" in name
        else [(..., prefix + name, part, parts)]
        for path, (name, part, parts) in by_path.items()
    }


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a convolution's kernel as that of a linear layer over flattened windows."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape


def _check(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    pieces_by_path: Mapping[str, list[tuple[Any, str, int, int]]],
    stored: Mapping[str, Tensor],
    ignore: Sequence[str],
    transposed: set[str],
) -> None:
    """Raises UserError that lists the tensors that are missing, unused, or of another shape or dtype."""
    missing, misshapen, mistyped, used = [], [], [], set()
    for path, pieces in pieces_by_path.items():
        for index, name, part, parts in pieces:
            if part:  # a fused tensor is checked at the first of its paths
                continue
            used.add(name)
            shape = shapes[path] if index is ... else shapes[path][1:]
            shape = (*shape[:-1], shape[-1] * parts)
            expected = shape[::-1] if path in transposed else shape
            if name not in stored:
                missing.append(f"{name} {list(expected)}, for {path}")
            elif (_flat(stored[name].shape) if path in transposed else stored[name].shape) != expected:
                misshapen.append(f"{stored[name].name}: expected {list(expected)}, got {list(stored[name].shape)}")
            elif (dtype := stored[name].dtype) not in FLOATS:
                mistyped.append(f"{stored[name].name} in {stored[name].file.name}: {dtype}, not {', '.join(FLOATS)}")
    unused = [
        f"{tensor.name} {list(tensor.shape)}"
        for name, tensor in stored.items()
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    lists = {"missing": missing, "unused": unused, "wrong shape": misshapen, "wrong dtype": mistyped}
    if any(lists.values()):
        described = sum(math.prod(shapes[path]) for path in pieces_by_path)
        in_files = sum(math.prod(tensor.shape) for tensor in stored.values())
        raise UserError(
            f"{folder}: the checkpoint does not fit the model that its config.json describes ({described:,} "
            f"parameters; the files have {in_files:,} numbers){''.join(_listed(*item) for item in lists.items())}"
        )


def _listed(problem: str, lines: Sequence[str]) -> str:
    """Returns the part of a message that lists one problem's tensors, the first ones if there are many."""
    if not lines:
        return ""
    more = [f"and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return f"\n{problem}:" + "".join(f"\n  {line}" for line in [*lines[:MOST_LISTED], *more])
