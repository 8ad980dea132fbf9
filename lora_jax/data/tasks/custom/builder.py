"""The TFDS builder of the user's own data. Its description is README.md, which TFDS finds beside this file."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.tasks.custom.examples import Source, read_examples


def builder_of(data: Source) -> type[FolderBuilder]:
    """Returns the class of the builder of `data`. Its name tells it from those of other files, columns and kinds."""
    return CustomBuilder.named(f"custom_{data.key}", source=data)


class CustomBuilder(FolderBuilder):
    """Reads the files of `source`; the network is not used."""

    license = "the user's own data"
    ordered = True
    source: ClassVar[Source]

    def splits(self) -> dict[str, list[dict[str, str]]]:
        splits, classes = read_examples(self.source)
        if classes:
            self.info.features["label"].names = list(classes)
        features = list(self.features())
        return {
            # Of a conversation, the whole of it alone.
            split: [dict(zip(features, example[-len(features) :], strict=True)) for example in splits[split]]
            for split in ("train", "validation", "test")
        }

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        text = tfds.features.Text()
        texts = {setting: text for setting in ("text", "pair") if setting in self.source.columns}
        # The names of the classes follow from the training examples. A prepared copy has them in a file.
        features = {
            "classification": {**texts, "label": tfds.features.ClassLabel()},
            "regression": {**texts, "label": tfds.features.Scalar(np.float32)},
            "generation": {"prompt": text, "reference": text},
            "chat": {"messages": text},
        }
        return features[self.source.kind.name]
