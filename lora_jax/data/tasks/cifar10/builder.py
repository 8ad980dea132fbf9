"""The TFDS builders of CIFAR-10. Their description is README.md, which TFDS finds beside this file."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from lora_jax.data.archive import tar_files
from lora_jax.data.bounded import read_bytes
from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.image_builder import Decoded, Record, array_record, cut, file_record, image_features
from lora_jax.data.tasks.cifar10 import LARGEST, TEST, TRAIN
from lora_jax.errors import UserError

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
SHAPE = (SIDE, SIDE, 3)
RECORD = 1 + SIDE * SIDE * 3  # bytes: the class, then all of red, of green and of blue, each row by row
MEMBERS = 100_000  # of an archive of JPEG files


class Cifar10(FolderBuilder):
    """Reads data_batch_1.bin to data_batch_5.bin and test_batch.bin in `folder`; the network is not used."""

    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
    license = "none stated"

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return image_features(SHAPE, LABELS)

    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        train, validation = cut(self._records(TRAIN))
        parts = {"train": train, "validation": validation, "test": self._records(TEST)}
        return {name: Decoded(part) for name, part in parts.items()}

    def _records(self, names: Sequence[str]) -> list[Record]:
        return [record for name in names for record in read_batch(self.folder / name)]


class Cifar10Jpeg(Cifar10):
    """Reads train.tar.gz and test.tar.gz in `folder`, with a JPEG file for each image; the network is not used."""

    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        train, validation = cut(list(read_jpeg(self.folder / "train.tar.gz")))
        parts = {"train": train, "validation": validation, "test": list(read_jpeg(self.folder / "test.tar.gz"))}
        return {name: Decoded(part) for name, part in parts.items()}


def read_batch(path: Path) -> list[Record]:
    """Returns the records of a file of the binary version; UserError if it is malformed."""
    where, content = f"task.data_dir: {path.absolute()}", read_bytes(path, LARGEST)
    if not content or len(content) % RECORD:
        raise UserError(f"{where} has {len(content)} bytes; expected {RECORD} for each image")
    rows = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if (wrong := rows[:, 0] >= len(LABELS)).any():
        place = int(wrong.argmax())
        raise UserError(f"{where}, image {place} is of the class {rows[place, 0]}; expected 0 to {len(LABELS) - 1}")
    pixels = rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return [array_record(image, LABELS[label]) for image, label in zip(pixels, rows[:, 0], strict=True)]


def read_jpeg(path: Path) -> Iterator[Record]:
    """Yields the records of an archive with files such as ``train/airplane/0000.jpg``; UserError for other files."""
    where = f"task.data_dir: {path.absolute()}"
    for name, content in tar_files(path, ".jpg", members=MEMBERS):
        label = PurePosixPath(name).parent.name
        if label not in LABELS:
            raise UserError(f"{where}: {name} is in the folder {label!r}; expected one of {', '.join(LABELS)}")
        yield file_record(functools.partial(bytes, content), label, _pixels, f"{where}: {name}")


def _pixels(image: Image.Image, where: str) -> UInt8[np.ndarray, "height width 3"]:
    if image.size != (SIDE, SIDE):
        raise UserError(f"{where} has {image.width} x {image.height} pixels; expected {SIDE} x {SIDE}")
    return np.asarray(image)
