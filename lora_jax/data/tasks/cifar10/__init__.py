"""CIFAR-10 (Krizhevsky, 2009): which of ten classes does an image of 32 x 32 pixels show?"""

import os
from pathlib import Path

from lora_jax.data.image_builder import read_images
from lora_jax.data.images import Images
from lora_jax.data.prepared import open_builder
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# Not in this package: read from task.data_dir, or downloaded once.
LARGEST = 2**28  # bytes
ARCHIVE = RawFile(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",  # that TFDS lists
    LARGEST,
)
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
FILES = tuple(RawFile(name, ARCHIVE.url, largest=LARGEST) for name in (*TRAIN, *TEST))
JPEG_ARCHIVES = ("train.tar.gz", "test.tar.gz")


def load(data_dir: Path | None = None) -> TaskData[Images]:
    """Reads the binary version in `data_dir`, packed or unpacked, or its JPEG archives, or else downloads the former.

    There are 50,000 / 10,000 images; the validation split is cut from the former. Raises UserError if the files are
    missing, are malformed, or cannot be downloaded.
    """

    from lora_jax.data.tasks.cifar10.builder import Cifar10, Cifar10Jpeg

    if data_dir is not None and all(os.path.exists(data_dir / name) for name in JPEG_ARCHIVES):
        return read_images(open_builder(Cifar10Jpeg, data_dir, JPEG_ARCHIVES))
    folder = raw_folder("cifar10", data_dir or raw_folder("cifar10", None, [ARCHIVE]), FILES, ARCHIVE.name)
    return read_images(open_builder(Cifar10, folder, [raw.name for raw in FILES], LARGEST))


CIFAR10 = Task(
    name="cifar10",
    objective="image_classification",
    evaluators=("scores",),
    metrics=("accuracy", "loss"),
    metric="accuracy",
    select="accuracy",
    load=load,
    folder="cifar10_jpeg",
)
