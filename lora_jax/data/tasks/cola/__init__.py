"""CoLA (Warstadt et al., arXiv 1805.12471), a task of GLUE: whether a sentence is grammatical English."""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_classes
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# No licence allows redistribution, so not in this package: read from task.data_dir, or downloaded once.
_URL = "https://raw.githubusercontent.com/F0restL1n/BERT/0d0288be08079531c7b3a85af3d532f9adb0f13a/glue_data/CoLA/"
FILES = (
    RawFile("train.tsv", _URL, "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624"),
    RawFile("dev.tsv", _URL, "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd"),
)
ARCHIVE = "CoLA.zip"  # as GLUE publishes it


def load(data_dir: Path | None = None) -> TaskData:
    """Reads GLUE's train.tsv and dev.tsv, or its CoLA.zip, in `data_dir`; or else downloads them.

    7,695 / 856 / 1,043 sentences: GLUE's development set is the test split, since GLUE keeps the labels of its own
    test set to itself, and a tenth of the training sentences validates. Raises UserError if the files are not there,
    or cannot be downloaded.
    """

    from lora_jax.data.tasks.cola.builder import Cola

    folder = raw_folder("cola", data_dir, FILES, ARCHIVE)
    return read_classes(open_builder(Cola, folder, [raw.name for raw in FILES]), "sentence")


COLA = Task(
    name="cola",
    objective="classification",
    evaluators=("scores",),
    metrics=("matthews", "accuracy", "loss"),
    metric="matthews",
    select="matthews",
    load=load,
    folder="glue/CoLA",
)
