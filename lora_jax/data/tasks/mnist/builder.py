"""The TFDS builders of MNIST. Their description is README.md, which TFDS finds beside this file."""

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from lora_jax.data.bounded import read_bytes
from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.image_builder import Decoded, Record, array_record, cut, image_features
from lora_jax.data.json_lines import read_json
from lora_jax.errors import UserError, shown

LABELS = tuple("0123456789")
SIDE = 28
SHAPE = (SIDE, SIDE, 1)


class Mnist(FolderBuilder):
    """Reads LeCun's four files in `folder`, unpacked; the network is not used."""

    homepage = "http://yann.lecun.com/exdb/mnist/"
    license = "CC BY-SA 3.0"

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return image_features(SHAPE, LABELS)

    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        train, validation = cut(self._records("train"))
        parts = {"train": train, "validation": validation, "test": self._records("t10k")}
        return {name: Decoded(part) for name, part in parts.items()}

    def _records(self, name: str) -> list[Record]:
        pixels = read_idx(self.folder / f"{name}-images-idx3-ubyte", (SIDE, SIDE))
        file = self.folder / f"{name}-labels-idx1-ubyte"
        labels = read_idx(file, ())
        if len(labels) != len(pixels):
            raise UserError(f"task.data_dir: {file.absolute()} has {len(labels)} labels; expected {len(pixels)}")
        if (wrong := labels >= len(LABELS)).any():
            place = int(wrong.argmax())
            raise UserError(f"task.data_dir: {file.absolute()}, label {place} is {labels[place]}; expected 0 to 9")
        return [array_record(image[..., None], LABELS[label]) for image, label in zip(pixels, labels, strict=True)]


class MnistNpm(Mnist):
    """Reads digits/0.json to digits/9.json in `folder`; the network is not used."""

    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        rest, test = cut([record for label in LABELS for record in self._digits(label)])
        train, validation = cut(rest)
        return {"train": Decoded(train), "validation": Decoded(validation), "test": Decoded(test)}

    def _digits(self, label: str) -> list[Record]:
        record = read_json(self.folder / "digits" / f"{label}.json")
        values = record.numbers("data")
        if not values or len(values) % SIDE**2:
            raise UserError(f"{record.where}: data has {len(values)} numbers; expected {SIDE**2} for each image")
        grey = np.array(values)
        if (wrong := ~((grey >= 0) & (grey <= 1))).any():
            place = int(wrong.argmax())
            raise UserError(f"{record.where}: data[{place}]={shown(values[place])}; expected a number from 0 to 1")
        # The numbers are rounded to three places, which tell the 256 levels of grey apart.
        pixels = np.round(255 * grey).astype(np.uint8).reshape(-1, *SHAPE)
        return [array_record(image, label) for image in pixels]


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Returns the content of a file in LeCun's format: unsigned bytes ``[n, *shape]``.

    The file begins with 0, 0, 8 for unsigned bytes, and the number of axes, a byte each, and then has the length of
    each axis in four bytes, the most significant first.

    Raises:
      UserError: the file has another header, or another size than its header says.
    """
    where = f"task.data_dir: {path.absolute()}"
    content, axes = read_bytes(path), 1 + len(shape)
    size = 4 + 4 * axes
    expected = f"expected unsigned bytes with {axes} axes" + (f", the last {shape}" if shape else "")
    if len(content) < size or content[:4] != bytes([0, 0, 8, axes]):
        raise UserError(f"{where} begins with {shown(content[:4])}; {expected}")
    count, *rest = struct.unpack(f">{axes}I", content[4:size])
    if tuple(rest) != shape:
        raise UserError(f"{where} has arrays of the shape {tuple(rest)}; {expected}")
    if len(content) != size + count * math.prod(shape):
        raise UserError(
            f"{where} has {len(content)} bytes; its header says {size + count * math.prod(shape)}, for {count} arrays"
        )
    return np.frombuffer(content, np.uint8, offset=size).reshape(count, *shape)
