"""STS-B (Cer et al., arXiv 1708.00055) for sentence embeddings: the cosine of two sentences predicts their score."""

import dataclasses
from pathlib import Path

import numpy as np

from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.glue import GLUE
from lora_jax.data.tasks.glue.table import STSB

HIGHEST = 5  # score of STS-B


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the splits of the task `stsb`, with scores from 0 to 1, to which the cosine is trained.

    Raises:
      UserError: as the task `stsb` does.
    """
    data = GLUE[STSB.name].load(data_dir)
    splits = {
        name: dataclasses.replace(split, labels=np.asarray(split.labels) / np.float32(HIGHEST))
        for name, split in data.splits.items()
    }
    return TaskData((), splits)


STSB_EMBEDDING = Task(
    name="stsb_embedding",
    objective="similarity",
    evaluators=("scores",),
    metrics=("spearman", "pearson", "mean_squared_error"),
    metric="spearman",
    select="spearman",
    load=load,
    folder=STSB.folder,
)
