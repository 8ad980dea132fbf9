"""The TFDS builder of WNUT-17. Its description is README.md, which TFDS finds beside this file."""

import tensorflow_datasets as tfds

from lora_jax.data.conll import read_conll
from lora_jax.data.folder_builder import FolderBuilder

TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
# In the order of Hugging Face's `datasets`.
TAGS = ("O", *(f"{place}-{kind}" for kind in TYPES for place in "BI"))
FILES = {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"}


class Wnut17(FolderBuilder):
    """Reads wnut17train.conll, emerging.dev.conll and emerging.test.annotated in `folder`; no network is used."""

    homepage = "https://github.com/leondz/emerging_entities_17"
    license = "CC BY 4.0"
    ordered = True

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {
            "words": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=TAGS)),
        }

    def splits(self) -> dict[str, list[dict[str, list[str]]]]:
        return {split: self._sentences(name) for split, name in FILES.items()}

    def _sentences(self, name: str) -> list[dict[str, list[str]]]:
        return [
            {"words": [word for word, _ in sentence], "tags": [tag for _, tag in sentence]}
            for sentence in read_conll(self.folder / name, TAGS)
        ]
