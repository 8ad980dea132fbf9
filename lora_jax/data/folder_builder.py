"""The base class of the tasks' TFDS builders, which read raw files in a folder and never use the network."""

from pathlib import Path
from typing import Any, ClassVar, NoReturn

import tensorflow_datasets as tfds


class FolderBuilder(tfds.core.GeneratorBasedBuilder):
    """Reads raw files in `folder`. A task adds a VERSION, `_info` and `_split_generators`, which yields the examples.

    TFDS shows the README.md beside the task's builder as its description.
    """

    # Nothing is downloaded. Without this, TFDS 4.9.10 imports a package that it does not depend on.
    url_infos: ClassVar[dict] = {}

    def __init__(self, *, folder: Path, data_dir: Path):
        self.folder = folder
        super().__init__(data_dir=data_dir)

    def _generate_examples(self, **options: Any) -> NoReturn:
        raise NotImplementedError("_split_generators yields the examples itself")
