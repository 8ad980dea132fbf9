"""Emotion (Saravia et al., EMNLP 2018): which of six emotions a tweet expresses."""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_classes
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# For research only, so not in this package: read from task.data_dir, or downloaded once.
_URL = "https://raw.githubusercontent.com/Ashugujjar3/Tweet_emotion-detector/8e69c5edbf5ec06fcd9d9ca00ed32675f24cd1bd/"
FILES = (
    RawFile("train.txt", _URL, "3ab03d945a6cb783d818ccd06dafd52d2ed8b4f62f0f85a09d7d11870865b190"),
    # The authors' file and a blank line before it, which is passed over.
    RawFile("val.txt", _URL, "7fa30d571b1125accbc2b55ca6cd28ea05f3cfdd885c8ebe525323dc84dd64d3"),
    RawFile("test.txt", _URL, "60f531690d20127339e7f054edc299a82c627b5ec0dd5d552d53d544e0cfcc17"),
)


def load(data_dir: Path | None = None) -> TaskData:
    """Reads train.txt, val.txt and test.txt in `data_dir`, or else downloads them: 16,000 / 2,000 / 2,000 tweets.

    Raises UserError if the files are not there, are malformed, or cannot be downloaded.
    """

    from lora_jax.data.tasks.emotion.builder import Emotion

    folder = raw_folder("emotion", data_dir, FILES)
    return read_classes(open_builder(Emotion, folder, [raw.name for raw in FILES]), "text")


EMOTION = Task(
    name="emotion",
    objective="classification",
    evaluators=("scores",),
    metrics=("accuracy", "f1", "loss"),
    metric="accuracy",
    select="accuracy",
    load=load,
    folder="emotion",
)
