"""Reads the tensors of a checkpoint, in safetensors or a GGUF file, a few rows at a time.

Files are mapped into memory, and pages that have been read count as memory of the process. So pages are released right
after they have been read.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.errors import UserError
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.sources import gguf_in

CHUNK = 2**20  # elements read at a time, and at least one row


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk.

    Attributes:
      name: the name in the file.
      shape: the shape.
      read: returns the rows in a slice of the first axis.
    """

    name: str
    shape: tuple[int, ...]
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
      UserError: a file is missing or not readable, or two tensors have the same current name.
    """
    if file := gguf_in(folder):
        return {name: Tensor(name, shape, read) for name, (shape, read) in open_gguf(file).tensors().items()}
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="numpy") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a readable safetensors file ({error})") from error
        for name, shape in shapes.items():
            current = name
            for old, new in renamed.items():
                current = current.replace(old, new)
            if current in tensors:
                raise UserError(
                    f"{folder}: both {tensors[current].name!r} and {name!r} (in {file.name}) are {current!r}"
                )
            tensors[current] = Tensor(name, shape, _reader(file, name))
    return tensors


def _reader(file: Path, name: str) -> Callable[[slice], np.ndarray]:
    def read(rows: slice) -> np.ndarray:
        with safe_open(file, framework="numpy") as opened:  # opened for each read, because closing releases the pages
            return opened.get_slice(name)[rows]

    return read


def _files(folder: Path) -> list[Path]:
    """Returns the safetensors of a checkpoint: model.safetensors, the shards of an index, or the only file."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise UserError(f"{folder}: expected model.safetensors or {index.name}, got {names}")
        return files
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not a readable index ({type(error).__name__}: {error})") from error
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise UserError(f"{folder}: {index.name} lists missing shards: {', '.join(missing)}")
    return [folder / shard for shard in shards]
