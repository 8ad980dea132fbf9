"""The TFDS builder of CoLA. Its description is README.md, which TFDS finds beside this file."""

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.held_out import cut_validation
from lora_jax.data.tables import read_tsv

LABELS = {"0": "unacceptable", "1": "acceptable"}
COLUMNS = ("source", "label", "mark", "sentence")


class Cola(FolderBuilder):
    """Reads train.tsv and dev.tsv in `folder`; the network is not used."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(names=list(LABELS.values()))}
            ),
            supervised_keys=("sentence", "label"),
            homepage="https://nyu-mll.github.io/CoLA",
            license="none; excerpts from publications, for research",
        )

    def splits(self) -> dict[str, list[dict[str, str]]]:
        train, validation = cut_validation(self._rows("train.tsv"))
        parts = {"train": train, "validation": validation, "test": self._rows("dev.tsv")}
        return {name: [{"sentence": text, "label": label} for text, label in part] for name, part in parts.items()}

    def _rows(self, name: str) -> list[tuple[str, str]]:
        rows = read_tsv(self.folder / name, COLUMNS)
        return [(row.text("sentence"), LABELS[row.label("label", LABELS, "0 or 1")]) for row in rows]
