"""GLUE (Wang et al., arXiv 1804.07461): ten tasks of one text or two, with a class or a score."""

import functools
from pathlib import Path

from lora_jax.data.prepared import open_builder, read_classes, read_numbers
from lora_jax.data.raw import raw_folder
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.glue.table import TABLE, GlueTask


def make_task(row: GlueTask) -> Task:
    """Returns the task that a row of TABLE describes."""
    return Task(
        name=row.name,
        objective="classification" if row.labels else "regression",
        evaluators=("scores",),
        metrics=row.metrics,
        metric=row.metrics[0],
        select=row.metrics[0],
        load=functools.partial(load, row),
        folder=row.folder,
    )


def load(row: GlueTask, data_dir: Path | None = None) -> TaskData:
    """Reads a task's raw files, or the zip file in which GLUE publishes them, in `data_dir`; or else downloads them.

    GLUE's development set is the test split, since GLUE keeps the labels of its own test set to itself, and a tenth
    of the training texts, at most 2,000, validates. Raises UserError if the files are not there, are malformed, or
    cannot be downloaded.
    """

    # Importing TFDS takes half a second.
    from lora_jax.data.tasks.glue.builder import builder_of

    folder = raw_folder(row.name, data_dir, row.files, row.archive)
    builder = open_builder(builder_of(row), folder, [raw.name for raw in row.files], row.largest)
    read = read_classes if row.labels else read_numbers
    return read(builder, "text", "pair" if len(row.texts) > 1 else None)


GLUE = {row.name: make_task(row) for row in TABLE}
