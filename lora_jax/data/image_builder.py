"""What the TFDS builders of images have in common: records, features, splits that are cut, and reading them back."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lora_jax.data.held_out import validation_texts
from lora_jax.data.image_files import decode
from lora_jax.data.images import Images
from lora_jax.data.prepared import SPLITS
from lora_jax.data.task import TaskData

if TYPE_CHECKING:
    from lora_jax.data.folder_builder import FolderBuilder

AT_MOST = 5_000  # images of a split that is cut
CHUNK = 1_000  # images that are read at once


@dataclass(frozen=True)
class Record:
    """An image that is not decoded yet.

    Attributes:
      label: the name of its class.
      digest: returns the SHA-256, in hex, of its file, or of its pixels where it has no file of its own. A split that
        is cut depends on it alone.
      pixels: decodes it.
    """

    label: str
    digest: Callable[[], str]
    pixels: Callable[[], UInt8[np.ndarray, "height width channels"]]


class Decoded(Sequence[dict[str, Any]]):
    """The examples of a split as TFDS takes them. Each is decoded when it is read."""

    def __init__(self, records: Sequence[Record]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: Any) -> Any:
        return {"image": self._records[i].pixels(), "label": self._records[i].label}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


def array_record(pixels: UInt8[np.ndarray, "height width channels"], label: str) -> Record:
    """Returns the record of an image that is published as an array."""
    return Record(label, lambda: hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)


def file_record(
    read: Callable[[], bytes],
    label: str,
    convert: Callable[[Image.Image, str], UInt8[np.ndarray, "height width 3"]],
    where: str,
) -> Record:
    """Returns the record of an image that is published as a file.

    Args:
      read: returns the content of the file.
      label: the name of the class.
      convert: takes the pixels from the decoded image; its errors begin with the second argument.
      where: names the file in an error.
    """
    return Record(label, lambda: hashlib.sha256(read()).hexdigest(), lambda: convert(decode(read(), where), where))


def image_features(shape: tuple[int, int, int], names: Sequence[str]) -> dict[str, Any]:
    """Returns the features of images of this shape, ``(height, width, channels)``, with classes of these names.

    TFDS's own feature of images needs TensorFlow to write one.
    """
    import tensorflow_datasets as tfds

    image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
    return {"image": image, "label": tfds.features.ClassLabel(names=names)}


def cut(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Returns the records that stay, and those of a split that is cut from them.

    Of each class the tenth with the smallest SHA-256 is cut, as held_out.py does with texts, and AT_MOST in all.
    Copies of an image are in one split.
    """
    digests = [record.digest() for record in records]
    labelled = zip(digests, (record.label for record in records), strict=True)
    held_out = validation_texts(labelled, at_most=AT_MOST)
    split: tuple[list[Record], list[Record]] = ([], [])
    for record, digest in zip(records, digests, strict=True):
        split[digest in held_out].append(record)
    return split


def read_images(builder: "FolderBuilder") -> TaskData[Images]:
    """Reads every split of a prepared builder with `image_features`."""
    names, shape = builder.info.features["label"].names, builder.info.features["image"].shape
    splits = {}
    for name, source in _sources(builder).items():
        pixels, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
        for start in range(0, len(source), CHUNK):
            rows = range(start, min(start + CHUNK, len(source)))
            for i, row in zip(rows, source.__getitems__(rows), strict=True):
                pixels[i], labels[i] = row["image"], row["label"]
        splits[name] = Images(pixels, labels)
    return TaskData(tuple(names), splits)


def _sources(builder: "FolderBuilder") -> dict[str, Any]:
    sources = builder.as_data_source()
    return {name: sources[split] for name, split in SPLITS.items()}
