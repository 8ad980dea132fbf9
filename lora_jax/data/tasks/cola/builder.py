"""The TFDS builder of CoLA. Its description is README.md, which TFDS finds beside this file."""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.held_out import normalise, validation_texts
from lora_jax.errors import UserError

LABELS = ("unacceptable", "acceptable")


class Cola(FolderBuilder):
    """Reads train.tsv and dev.tsv in `folder`; the network is not used."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(names=LABELS)}
            ),
            supervised_keys=("sentence", "label"),
            homepage="https://nyu-mll.github.io/CoLA",
            license="none; excerpts from publications, for research",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        train = self._rows("train.tsv")
        held_out = validation_texts(train)
        return {
            "train": _examples(row for row in train if normalise(row[0]) not in held_out),
            "validation": _examples(row for row in train if normalise(row[0]) in held_out),
            "test": _examples(self._rows("dev.tsv")),
        }

    def _rows(self, name: str) -> list[tuple[str, str]]:
        """Returns (sentence, label) of every line: source, label, original mark, sentence. Quotes are plain letters."""
        path, rows = self.folder / name, []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            fields = line.split("\t")
            if len(fields) != 4 or fields[1] not in ("0", "1") or not fields[3].strip():
                raise UserError(
                    f"task.data_dir: {path.absolute()}, line {number}: {line[:80]!r}; expected four columns: source, "
                    f"0 or 1, mark, sentence"
                )
            rows.append((fields[3], LABELS[int(fields[1])]))
        return rows


def _examples(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
    return ((i, {"sentence": sentence, "label": label}) for i, (sentence, label) in enumerate(rows))
