"""BANKING77 (Casanueva et al., arXiv 2003.04807): which of 77 intents a customer's question to a bank has."""

from pathlib import Path

import numpy as np

from lora_jax.data.examples import Examples, Task
from lora_jax.data.prepared import open_builder

FILES = ("train.csv", "test.csv", "categories.json")


def load(data_dir: Path | None = None) -> Task:
    """The task, from the raw FILES in `data_dir` or else those beside this module; UserError if they are not there."""

    def make(folder: Path, prepared: Path):
        # Importing TFDS takes half a second, and preparing is rare.
        from lora_jax.data.banking77.builder import Banking77

        return Banking77(folder=folder, data_dir=prepared)

    builder = open_builder(make, data_dir or Path(__file__).parent, FILES)
    names = tuple(builder.info.features["label"].names)
    sources = builder.as_data_source()
    splits = {}
    for ours, theirs in {"train": "train", "valid": "validation", "test": "test"}.items():
        rows = list(sources[theirs])
        texts = [row["text"].decode() for row in rows]
        splits[ours] = Examples(texts, np.array([row["label"] for row in rows], np.int32))
    return Task(
        name="banking77",
        kind="classification",
        labels=names,
        metric="accuracy",
        select="accuracy",
        splits=splits,
    )
