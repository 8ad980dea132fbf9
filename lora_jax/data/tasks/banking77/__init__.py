"""BANKING77 (Casanueva et al., arXiv 2003.04807): which of 77 intents a customer's question to a bank has."""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_classes
from lora_jax.data.task import Task, TaskData

FILES = ("train.csv", "test.csv", "categories.json")


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the raw FILES in `data_dir`, or else those beside this module; UserError if they are not there."""

    # Importing TFDS takes half a second.
    from lora_jax.data.tasks.banking77.builder import Banking77

    return read_classes(open_builder(Banking77, data_dir or Path(__file__).parent, FILES), "text")


BANKING77 = Task(
    name="banking77",
    objective="classification",
    evaluators=("scores",),
    metrics=("accuracy", "loss"),
    metric="accuracy",
    select="accuracy",
    load=load,
    folder="banking77",
)
