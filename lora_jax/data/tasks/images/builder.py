"""The TFDS builder of a folder of images. Its description is README.md, which TFDS finds beside this file."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from lora_jax.data.bounded import read_bytes
from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.image_builder import Decoded, Record, cut, file_record, image_features
from lora_jax.data.image_files import squared
from lora_jax.data.tasks.images.layout import list_images

SIDE = 224  # pixels of an image once it is prepared, as most ViTs read it


class ImageFolder(FolderBuilder):
    """Reads the images in `folder`; the network is not used."""

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        labels = sorted({path.parent.name for path in list_images(self.folder)["train"]})
        return image_features((SIDE, SIDE, 3), labels)

    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        parts = {name: list(map(_record, paths)) for name, paths in list_images(self.folder).items()}
        for name in ("test", "validation"):
            if name not in parts:
                parts["train"], parts[name] = cut(parts["train"])
        return {name: Decoded(part) for name, part in parts.items()}


def _record(path: Path) -> Record:
    where = f"task.data_dir: {path.absolute()}"
    return file_record(functools.partial(read_bytes, path), path.parent.name, _pixels, where)


def _pixels(image: Image.Image, where: str) -> UInt8[np.ndarray, "height width 3"]:
    return squared(image, SIDE)
