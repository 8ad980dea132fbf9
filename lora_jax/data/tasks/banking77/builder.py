"""The TFDS builder of BANKING77. Its description is README.md, which TFDS finds beside this file."""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.held_out import normalise, validation_texts
from lora_jax.errors import UserError


class Banking77(FolderBuilder):
    """Reads train.csv, test.csv and categories.json in `folder`; the network is not used."""

    # Raise it whenever the same raw files give other examples or another validation split.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        path = self.folder / "categories.json"
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
            usable = all(isinstance(name, str) for name in names) and 1 < len(names) == len(set(names))
        except (ValueError, TypeError):
            usable = False
        if not usable:
            raise UserError(f"task.data_dir: {path.absolute()}: expected a JSON list of two or more different names")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=names)}
            ),
            supervised_keys=("text", "label"),
            homepage="https://github.com/PolyAI-LDN/task-specific-datasets",
            license="CC BY 4.0, PolyAI",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        train = self._rows("train.csv")
        held_out = validation_texts(train)
        return {
            "train": _examples(row for row in train if normalise(row[0]) not in held_out),
            "validation": _examples(row for row in train if normalise(row[0]) in held_out),
            "test": _examples(self._rows("test.csv")),
        }

    def _rows(self, name: str) -> list[tuple[str, str]]:
        """Returns (text, category) of every row of a CSV file; UserError at the first row that lacks one."""
        path, categories = self.folder / name, set(self.info.features["label"].names)
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = []
            for row in reader:
                if not row.get("text") or row.get("category") not in categories:
                    raise UserError(
                        f"task.data_dir: {path.absolute()}, line {reader.line_num}: {row}; expected a text and a "
                        f"category that categories.json lists"
                    )
                rows.append((row["text"], row["category"]))
        return rows


def _examples(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
    return ((i, {"text": text, "label": category}) for i, (text, category) in enumerate(rows))
