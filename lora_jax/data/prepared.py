"""Prepares raw files as TFDS splits in the cache, once; later calls only read them. TensorFlow is not needed."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.cache import cache_folder
from lora_jax.data.examples import Examples
from lora_jax.data.raw import raw_files
from lora_jax.data.task import TaskData

logger = logging.getLogger("lora_jax")

# Our names of the splits, and TFDS's.
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
# Makes a builder, given the folder of raw files and the folder to prepare into (TFDS's data_dir).
MakeBuilder = Callable[[Path, Path], Any]


def open_builder(make: MakeBuilder, folder: Path, files: Sequence[str]) -> Any:
    """Returns the TFDS builder of the raw `files` in `folder`, prepared and ready for `as_data_source`.

    The path of the prepared copy contains a hash of the raw files, so files that change are prepared anew. Raises
    UserError if `folder` lacks one of them.
    """
    import tensorflow_datasets as tfds

    digest = hashlib.sha256()
    for path in raw_files(folder, files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    prepared = cache_folder().absolute() / "tfds" / digest.hexdigest()[:16]
    builder = make(folder, prepared)
    if Path(builder.data_dir).exists():
        return builder
    logger.info("preparing %s in %s", folder, builder.data_dir)
    tfds.disable_progress_bar()
    try:
        # TFDS prints that it downloads, which it does not. Its default file format, TFRecord, needs TensorFlow.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except OSError:
        # TFDS writes to a temporary folder and renames it last. The rename fails if the folder exists: then another
        # process was quicker, and its copy is complete.
        if not Path(builder.data_dir).exists():
            raise
    return make(folder, prepared)


def read_splits(builder: Any) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Reads all examples of every split of a prepared builder, by our name of the split, in order."""
    sources = builder.as_data_source()
    # One request for all records takes half the time of iteration, which requests each record by itself.
    return {name: sources[split].__getitems__(range(len(sources[split]))) for name, split in SPLITS.items()}


def read_classes(builder: Any, text: str) -> TaskData:
    """Reads every split of a prepared classification: the texts in the feature `text`, the classes in ``label``."""
    splits = {
        name: Examples([row[text].decode() for row in rows], np.array([row["label"] for row in rows], np.int32))
        for name, rows in read_splits(builder).items()
    }
    return TaskData(tuple(builder.info.features["label"].names), splits)
