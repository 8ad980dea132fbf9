"""The tensors of a checkpoint on disk, in safetensors or a GGUF file: their names and shapes, and some rows at a time.

Files are mapped into memory, and pages once read count as the process's own. So what was read is let go of at once.
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

CHUNK = 2**20  # numbers that are read at once, or one row


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk: its name there, its shape, and how to read rows (a slice of its first axis)."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[slice], np.ndarray]

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows from `start` to `stop`, a few at a time, and which of them these are, counted from `start`."""
        stop = self.shape[0] if stop is None else stop
        step = max(1, CHUNK // math.prod(self.shape[1:]))
        for row in range(start, stop, step):
            end = min(row + step, stop)
            yield slice(row - start, end - start), self.read(slice(row, end))


def tensors_of(folder: Path, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Every tensor of the checkpoint in `folder` by today's name; `renamed` maps parts of old names to today's.

    No tensor is read yet. Raises UserError for a file that is missing or not readable, or a name that is there twice.
    """
    if file := gguf_in(folder):
        return {name: Tensor(name, shape, read) for name, (shape, read) in open_gguf(file).tensors().items()}
    held: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="numpy") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a readable safetensors file ({error})") from error
        for name, shape in shapes.items():
            today = name
            for old, new in renamed.items():
                today = today.replace(old, new)
            if today in held:
                raise UserError(f"{folder}: both {held[today].name!r} and {name!r} (in {file.name}) are {today!r}")
            held[today] = Tensor(name, shape, _reader(file, name))
    return held


def _reader(file: Path, name: str) -> Callable[[slice], np.ndarray]:
    def read(rows: slice) -> np.ndarray:
        with safe_open(file, framework="numpy") as opened:  # anew each time: closing lets go of the pages
            return opened.get_slice(name)[rows]

    return read


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
