"""The user's own data: tables, JSON lines and data sets on disk, described by the settings alone."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_jax.config import TaskConfig
from lora_jax.data.chats import Chats, from_json
from lora_jax.data.prepared import open_builder, read_classes, read_numbers, read_splits, read_texts
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.custom.examples import Source, open_table
from lora_jax.data.tasks.custom.files import FORMATS, find_files
from lora_jax.data.tasks.custom.kinds import COLUMNS, columns_of, kind_of
from lora_jax.data.tasks.custom.readers import LARGEST
from lora_jax.errors import UserError

if TYPE_CHECKING:
    from lora_jax.data.folder_builder import FolderBuilder

logger = logging.getLogger("lora_jax")

CUSTOM = tuple(FORMATS)  # the names that ``task.name`` takes


def custom_task(config: TaskConfig) -> Task:
    """Returns the task that the settings describe; UserError if they do not fit together."""
    kind, format = kind_of(config), FORMATS[config.name]
    if kind.name == "chat" and not format.lists:
        others = " or ".join(f"task={other.name}" for other in FORMATS.values() if other.lists)
        raise UserError(f"task.kind=chat: task={config.name} has no lists of messages in its columns; use {others}")
    return Task(
        name=config.name,
        objective=kind.name,
        evaluators=kind.evaluators,
        metrics=kind.metrics,
        metric=kind.metric,
        select=kind.select,
        load=functools.partial(load, config),
    )


def refuse_columns(config: TaskConfig) -> None:
    """Raises UserError if the settings of a task with columns of its own name others."""
    for setting in ("kind", *COLUMNS):
        if (value := getattr(config, setting)) is not None:
            others = " or ".join(f"task={name}" for name in CUSTOM)
            raise UserError(f"task.{setting}={value!r}: task={config.name} has its own columns; use {others}")


def load(config: TaskConfig, data_dir: Path | None) -> TaskData:
    """Reads the files in `data_dir`, prepared once for the same files and settings.

    Raises UserError if they are missing or malformed. Test and validation examples that are also in the train split are
    counted in a warning.
    """
    from lora_jax.data.tasks.custom.builder import builder_of

    kind = kind_of(config)
    files = find_files(FORMATS[config.name], data_dir)
    source = Source(files, kind, columns_of(config))
    for name in files.names:  # before all of a large file is hashed
        open_table(source, name)
    data = _READ[kind.name](open_builder(builder_of(source), files.folder, files.read, LARGEST))
    used = data.validate_on_test() if config.validation == "test" else data
    for split, count in repeated(used).items():
        logger.warning(
            "task.data_dir: %d of %d %s examples are also in the train split, so its figures are too good",
            *(count, len(used.splits[split]), split),
        )
    return data


def repeated(data: TaskData) -> dict[str, int]:
    """Returns how many examples of ``valid`` and ``test`` are also training examples, for splits that have any."""
    train = set(zip(*data.splits["train"].content(), strict=True))
    counts = {
        name: sum(example in train for example in zip(*data.splits[name].content(), strict=True))
        for name in ("valid", "test")
    }
    return {name: count for name, count in counts.items() if count}


def _read_labelled(read: Callable[..., TaskData], builder: "FolderBuilder") -> TaskData:
    return read(builder, "text", "pair" if "pair" in builder.info.features else None)


def _read_chats(builder: "FolderBuilder") -> TaskData[Chats]:
    splits = read_splits(builder).items()
    return TaskData((), {name: Chats([from_json(row["messages"].decode()) for row in rows]) for name, rows in splits})


_READ: dict[str, Callable[["FolderBuilder"], TaskData[Any]]] = {
    "classification": functools.partial(_read_labelled, read_classes),
    "regression": functools.partial(_read_labelled, read_numbers),
    "generation": read_texts,
    "chat": _read_chats,
}
