"""Prepares raw files as TFDS splits in the cache, once; later calls only read them. TensorFlow is not needed."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_jax.data.bounded import LARGEST, sha256_of
from lora_jax.data.examples import Examples
from lora_jax.data.kept import keep
from lora_jax.data.raw import raw_files
from lora_jax.data.task import TaskData

if TYPE_CHECKING:
    from lora_jax.data.folder_builder import FolderBuilder

logger = logging.getLogger("lora_jax")

# Our names of the splits, and TFDS's.
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def open_builder(
    kind: type["FolderBuilder"], folder: Path, files: Sequence[str], largest: int = LARGEST
) -> "FolderBuilder":
    """Returns the builder of class `kind` of the raw `files` in `folder`, prepared and ready for `as_data_source`.

    The path of the prepared copy contains a hash of the builder's version, the raw files and their names, so files that
    change are prepared anew. So is a copy that is damaged.

    Raises:
      UserError: `folder` lacks a file, a file is malformed or has more than `largest` bytes, or the cache cannot be
        written to.
    """
    digest = hashlib.sha256(f"{kind.name} {kind.VERSION}".encode())
    for name, path in zip(files, raw_files(folder, files), strict=True):
        # Some names tell the class of what the file holds.
        digest.update(name.encode() + b"\0" + sha256_of(path, largest))
    prepared = keep("tfds", digest.hexdigest()[:16], lambda into: _prepare(kind, folder, into))
    return kind(folder=folder, data_dir=prepared)


def _prepare(kind: type["FolderBuilder"], folder: Path, into: Path) -> None:
    import tensorflow_datasets as tfds

    logger.info("preparing %s", folder)
    tfds.disable_progress_bar()
    builder = kind(folder=folder, data_dir=into)
    try:
        # TFDS prints that it downloads, which it does not. Its default file format, TFRecord, needs TensorFlow.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except RuntimeError as error:  # array_record's, for a write that fails
        raise OSError(str(error)) from error


def read_splits(builder: "FolderBuilder") -> dict[str, Sequence[Mapping[str, Any]]]:
    """Reads all examples of every split of a prepared builder, by our name of the split, in order."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    # One request for all records takes half the time of iteration, which requests each record by itself. If every
    # feature is a single text or number, the records are decoded here, in a third of the time that TFDS takes.
    single = all(not info.shape for info in builder.info.features.get_serialized_info().values())
    method = DeserializeMethod.RAW_BYTES if single else DeserializeMethod.DESERIALIZE_AND_DECODE
    sources = builder.as_data_source(deserialize_method=method)
    rows = {name: sources[split].__getitems__(range(len(sources[split]))) for name, split in SPLITS.items()}
    names = tuple(builder.info.features)
    return {name: _decode(records, names) for name, records in rows.items()} if single else rows


def _decode(records: Sequence[bytes], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the single values of the features `names` in each of the serialised examples `records`."""
    from tensorflow_datasets.proto import tf_example_pb2

    rows = []
    for record in records:
        features = tf_example_pb2.Example.FromString(record).features.feature
        rows.append({name: getattr(features[name], features[name].WhichOneof("kind")).value[0] for name in names})
    return rows


def read_classes(builder: "FolderBuilder", text: str, pair: str | None = None) -> TaskData:
    """Reads every split of a prepared classification: the classes in ``label``, the texts in the feature `text`.

    The second texts are in the feature `pair`, if the examples are pairs.
    """
    return TaskData(tuple(builder.info.features["label"].names), _read_labelled(builder, text, pair, np.int32))


def read_numbers(builder: "FolderBuilder", text: str, pair: str | None = None) -> TaskData:
    """Reads every split of a prepared regression: the numbers in ``label``, the texts as in `read_classes`."""
    return TaskData((), _read_labelled(builder, text, pair, np.float32))


def _read_labelled(
    builder: "FolderBuilder", text: str, pair: str | None, dtype: type[np.generic]
) -> dict[str, Examples]:
    return {
        name: Examples(
            [row[text].decode() for row in rows],
            np.array([row["label"] for row in rows], dtype),
            None if pair is None else [row[pair].decode() for row in rows],
        )
        for name, rows in read_splits(builder).items()
    }


def read_texts(builder: "FolderBuilder") -> TaskData:
    """Reads every split of a prepared generation task, of a `PromptBuilder` or a `ChoiceBuilder`."""
    return TaskData((), {name: text_examples(rows) for name, rows in read_splits(builder).items()})


def text_examples(rows: Sequence[Mapping[str, Any]]) -> Examples:
    """Returns the records of a split, with a ``prompt`` and a ``reference`` each, as examples.

    A prompt's references follow one another: TFDS has shuffled the records. Otherwise the order is kept.
    """
    by_prompt: dict[bytes, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    ordered = [row for same in by_prompt.values() for row in same]
    choices = [tuple(choice.decode() for choice in row["choices"]) for row in ordered if "choices" in row]
    return Examples(
        [row["prompt"].decode() for row in ordered],
        [row["reference"].decode() for row in ordered],
        choices=choices or None,
    )
