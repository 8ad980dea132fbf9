"""The TFDS builder of BANKING77. Its description is README.md, which TFDS finds beside this file."""

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.held_out import cut_validation
from lora_jax.data.tables import read_csv, read_labels


class Banking77(FolderBuilder):
    """Reads train.csv, test.csv and categories.json in `folder`; the network is not used."""

    homepage = "https://github.com/PolyAI-LDN/task-specific-datasets"
    license = "CC BY 4.0, PolyAI"

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        names = read_labels(self.folder / "categories.json")
        return {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=names)}

    def splits(self) -> dict[str, list[dict[str, str]]]:
        train, validation = cut_validation(self._rows("train.csv"))
        parts = {"train": train, "validation": validation, "test": self._rows("test.csv")}
        return {name: [{"text": text, "label": label} for text, label in part] for name, part in parts.items()}

    def _rows(self, name: str) -> list[tuple[str, str]]:
        categories = frozenset(self.info.features["label"].names)
        rows = read_csv(self.folder / name, ("text", "category"))
        expected = "a category that categories.json lists"
        return [(row.text("text"), row.label("category", categories, expected)) for row in rows]
