"""The TFDS builders of GLUE. Their description is README.md, which TFDS finds beside this file."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.held_out import cut_validation
from lora_jax.data.tables import Row, read_tsv
from lora_jax.data.tasks.glue.table import GlueTask

IDS = ("#1 ID", "#2 ID")  # MRPC's, of the two texts
LOWEST, HIGHEST = 0, 5  # of STS-B's scores
TEXTS = ("text", "pair")  # the features of one text and of two


def builder_of(row: GlueTask) -> type[FolderBuilder]:
    """Returns the class of the builder of one task."""
    return GlueBuilder.named(f"glue_{row.name}", task=row, ordered=not row.shuffled)


class GlueBuilder(FolderBuilder):
    """Reads the raw files of `task` in `folder`; the network is not used."""

    homepage = "https://gluebenchmark.com"
    license = "each data set has its own, and some have none; see the description"
    task: ClassVar[GlueTask]

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        names = [*self.task.labels.values()]
        label = tfds.features.ClassLabel(names=names) if names else tfds.features.Scalar(np.float32)
        texts = {name: tfds.features.Text() for name in TEXTS[: len(self.task.texts)]}
        return {**texts, "label": label}

    def splits(self) -> dict[str, list[dict[str, str]]]:
        train, test = self._raw_splits()
        kept, validation = cut_validation(self._labelled(train), str if self.task.labels else _nearest_whole)
        parts = {"train": kept, "validation": validation, "test": self._labelled(test)}
        features = (*TEXTS[: len(self.task.texts)], "label")
        return {name: [dict(zip(features, row, strict=True)) for row in part] for name, part in parts.items()}

    def _raw_splits(self) -> tuple[list[Row], list[Row]]:
        """Returns the rows of GLUE's training set and of its development set."""
        train = self._read(self.task.train)
        if not self.task.dev_ids:
            return train, self._read(self.task.test)
        pairs = set(map(_ids, train))
        listing = read_tsv(self.folder / self.task.dev_ids, IDS)
        for row in listing:
            if _ids(row) not in pairs:
                raise row.error(IDS[0], f"with {IDS[1]} the ids of a pair in {self.task.train}")
        held = set(map(_ids, listing))
        return [row for row in train if _ids(row) not in held], [row for row in train if _ids(row) in held]

    def _read(self, name: str) -> list[Row]:
        task = self.task
        columns = (*task.texts, task.label, *(IDS if task.dev_ids else ()))
        return read_tsv(
            self.folder / name,
            task.columns or columns,
            header=not task.columns,
            ragged=task.ragged,
            largest=task.largest,
        )

    def _labelled(self, rows: Sequence[Row]) -> list[tuple[str, ...]]:
        """Returns the texts of each row, and its class or score."""
        return [(*(self._text(row, column) for column in self.task.texts), self._label(row)) for row in rows]

    def _text(self, row: Row, column: str) -> str:
        return row.values[column] if self.task.ragged else row.text(column)

    def _label(self, row: Row) -> str:
        column, labels = self.task.label, self.task.labels
        if labels:
            return labels[row.label(column, labels, " or ".join(labels))]
        if not LOWEST <= row.number(column) <= HIGHEST:
            raise row.error(column, f"a score from {LOWEST} to {HIGHEST}")
        return row.values[column]


def _ids(row: Row) -> tuple[str, ...]:
    return tuple(row.values[column] for column in IDS)


def _nearest_whole(score: str) -> str:
    return str(round(float(score)))
