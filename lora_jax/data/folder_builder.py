"""The base class of the tasks' TFDS builders, which read raw files in a folder and never use the network."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import tensorflow_datasets as tfds

from lora_jax.errors import UserError


class FolderBuilder(tfds.core.GeneratorBasedBuilder):
    """Reads raw files in `folder`. A task adds a VERSION, `_info` and `splits`.

    VERSION must be raised whenever the same raw files give other examples or other splits. TFDS shows the README.md
    beside the task's builder as its description.
    """

    # Nothing is downloaded. Without this, TFDS 4.9.10 imports a package that it does not depend on.
    url_infos: ClassVar[dict] = {}

    def __init__(self, *, folder: Path, data_dir: Path):
        self.folder = folder
        super().__init__(data_dir=data_dir)

    @abstractmethod
    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Returns the examples of ``train``, ``validation`` and ``test``; UserError if a file is malformed."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
        splits = self.splits()
        for name, examples in splits.items():
            if not examples:
                raise UserError(
                    f"task.data_dir={str(self.folder.absolute())!r}: too few rows, the {name} split has no example; "
                    f"expected one or more"
                )
        return {name: enumerate(examples) for name, examples in splits.items()}

    def _generate_examples(self, **options: Any) -> NoReturn:
        raise NotImplementedError("_split_generators gives the examples itself")
