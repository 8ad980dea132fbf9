"""The TFDS builder of Emotion. Its description is README.md, which TFDS finds beside this file."""

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.data.tables import read_tsv

# In the order of Hugging Face's `datasets`.
LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")
FILES = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}


class Emotion(FolderBuilder):
    """Reads train.txt, val.txt and test.txt in `folder`; the network is not used."""

    homepage = "https://github.com/dair-ai/emotion_dataset"
    license = "none; for education and research"
    ordered = True

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=LABELS)}

    def splits(self) -> dict[str, list[dict[str, str]]]:
        return {split: self._examples(name) for split, name in FILES.items()}

    def _examples(self, name: str) -> list[dict[str, str]]:
        rows = read_tsv(self.folder / name, ("text", "label"), separator=";")
        expected = ", ".join(LABELS)
        return [{"text": row.text("text"), "label": row.label("label", LABELS, expected)} for row in rows]
