"""Reads the tensors of a checkpoint, in safetensors or a GGUF file, a few rows at a time.

Files are mapped into memory, and pages that have been read count as memory of the process. So pages are released right
after they have been read.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.errors import UserError, message_of, shown
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.json_file import parse_object, read_object
from lora_jax.weights.sources import gguf_in

CHUNK = 2**20  # elements read at a time, and at least one row
FLOATS = ("F64", "F32", "F16", "BF16")  # the dtypes that a parameter may be stored in
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\\\0]+\.safetensors")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk.

    Attributes:
      name: the name in the file.
      shape: the shape.
      dtype: safetensors' name of the dtype.
      file: the file.
      read: returns the rows in a slice of the first axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    read: Callable[[slice], np.ndarray]

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the rows from `start` to `stop`, a few at a time, each with its slice, counted from `start`."""
        stop = self.shape[0] if stop is None else stop
        step = max(1, CHUNK // math.prod(self.shape[1:]))
        for row in range(start, stop, step):
            end = min(row + step, stop)
            yield slice(row - start, end - start), self.read(slice(row, end))


def tensors_of(folder: Path, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the tensors of the checkpoint in `folder`, by current name. It reads no tensor yet.

    Args:
      folder: the folder of the checkpoint.
      renamed: parts of current names by parts of old names.

    Raises:
      UserError: a file is missing or not readable, two tensors have the same current name, or the index does not fit
        its shards.
    """
    if file := gguf_in(folder):
        stored = open_gguf(file).tensors()
        return {name: Tensor(name, shape, "F32", file, read) for name, (shape, read) in stored.items()}
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        for tensor in _stored_in(file):
            current = tensor.name
            for old, new in renamed.items():
                current = current.replace(old, new)
            if current in tensors:
                raise UserError(
                    f"{folder}: both {tensors[current].name!r} and {tensor.name!r} (in {file.name}) are {current!r}"
                )
            tensors[current] = tensor
    _check_index(folder / INDEX, {tensor.name: tensor.file for tensor in tensors.values()})
    return tensors


def _stored_in(file: Path) -> list[Tensor]:
    """Returns the tensors of a safetensors file. The library checks their places in the file, but not their names."""
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        with file.open("rb") as raw:
            header = raw.read(int.from_bytes(raw.read(8), "little")).decode()
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a readable safetensors file ({message_of(error)})") from error
    parse_object(header, where=f"the header of {file}")
    return [
        Tensor(name, tuple(part.get_shape()), part.get_dtype(), file, _reader(file, name))
        for name, part in slices.items()
    ]


def _reader(file: Path, name: str) -> Callable[[slice], np.ndarray]:
    def read(rows: slice) -> np.ndarray:
        with safe_open(file, framework="numpy") as opened:  # opened for each read, because closing releases the pages
            return opened.get_slice(name)[rows]

    return read


def _files(folder: Path) -> list[Path]:
    """Returns the safetensors of a checkpoint: model.safetensors, the shards of an index, or the only file."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise UserError(f"{folder}: expected model.safetensors or {INDEX}, got {names}")
        return files
    shards = sorted(set(_shards_by_tensor(index).values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise UserError(f"{folder}: {INDEX} lists missing shards: {', '.join(missing)}")
    return [folder / shard for shard in shards]


def _shards_by_tensor(index: Path) -> dict[str, str]:
    """Returns the ``weight_map`` of an index. Raises UserError unless it maps names to files beside the index."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index}: weight_map={shown(weight_map)}: must be an object of file names by tensor names")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise UserError(
                f"{index}: weight_map[{shown(name)}]={shown(shard)}: must be the name of a *.safetensors file "
                f"beside the index"
            )
    return weight_map


def _check_index(index: Path, found: Mapping[str, Path]) -> None:
    """Raises UserError unless the index, if there is one, gives for every tensor the file that has it."""
    if not index.is_file() or (index.parent / "model.safetensors").is_file():
        return
    listed = _shards_by_tensor(index)
    stored = {name: file.name for name, file in found.items()}
    if wrong := sorted(name for name in listed.keys() | stored.keys() if listed.get(name) != stored.get(name)):
        first = wrong[0]
        raise UserError(
            f"{index} does not fit its shards: {shown(first)} should be in {listed.get(first, 'no shard')}, and is "
            f"in {stored.get(first, 'none')} ({len(wrong)} such tensors)"
        )
