"""The base class of the tasks' TFDS builders, which read raw files in a folder and never use the network."""

import types
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import tensorflow_datasets as tfds

from lora_jax.errors import UserError


class FolderBuilder(tfds.core.GeneratorBasedBuilder):
    """Reads raw files in `folder`. A task adds `features`, `splits`, and where the data are from.

    VERSION must be raised whenever the same raw files give other examples or other splits. TFDS shows the README.md
    beside the task's builder as its description.

    Attributes:
      homepage: the address of the data set.
      license: its licence.
      ordered: whether examples keep the order of the raw files. Otherwise TFDS shuffles them once.
    """

    VERSION = tfds.core.Version("1.0.0")
    homepage: ClassVar[str] = ""
    license: ClassVar[str] = ""
    ordered: ClassVar[bool] = False

    # Nothing is downloaded. Without this, TFDS 4.9.10 imports a package that it does not depend on.
    url_infos: ClassVar[dict] = {}

    def __init__(self, *, folder: Path, data_dir: Path):
        self.folder = folder
        super().__init__(data_dir=data_dir)

    @classmethod
    def named(cls, name: str, **attributes: Any) -> type[Self]:
        """Returns a class with another name, by which TFDS tells prepared copies apart, and other class attributes."""
        # TFDS finds the README by the module. It would register the class, and refuses a name that it has.
        body = {"__module__": cls.__module__, "name": name, **attributes}
        return types.new_class(name, (cls,), {"skip_registration": True}, lambda space: space.update(body))

    @abstractmethod
    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Returns TFDS's features of an example, by name."""

    @abstractmethod
    def splits(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Returns the examples of ``train``, ``validation`` and ``test``; UserError if a file is malformed."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(self.features()),
            homepage=self.homepage,
            license=self.license,
            disable_shuffling=self.ordered,
        )

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


class PromptBuilder(FolderBuilder):
    """Reads prompts with a reference each."""

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {"prompt": tfds.features.Text(), "reference": tfds.features.Text()}


class ChoiceBuilder(PromptBuilder):
    """Reads prompts with a reference each, which is one of a few choices."""

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {**super().features(), "choices": tfds.features.Sequence(tfds.features.Text())}
