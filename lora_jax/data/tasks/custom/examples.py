"""Reads the user's files as examples, checks them against each other, and cuts the splits that are missing."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_jax.data.chats import last_answer, to_json
from lora_jax.data.held_out import cut_validation
from lora_jax.data.tasks.custom.files import Files
from lora_jax.data.tasks.custom.kinds import Kind
from lora_jax.data.tasks.custom.readers import Table, read_table
from lora_jax.data.tasks.custom.rows import Row
from lora_jax.errors import UserError, shown

# The texts of an example, and last what is learnt: a class, a number or a text. Of a conversation: the turns before the
# assistant's last one, and the whole of it.
Example = tuple[str, ...]
Columns = Mapping[str, str]  # the names of columns by setting


@dataclass(frozen=True)
class Source:
    """Which examples are read: the files, what is learnt from them, and their columns."""

    files: Files
    kind: Kind
    columns: Columns

    @property
    def key(self) -> str:
        """A hash, in hex, of everything but the content of the files."""
        settings = [self.kind.name, sorted(self.columns.items()), list(self.files.splits.items())]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


class OwnExamples(NamedTuple):
    """The examples of ``train``, ``validation`` and ``test``, and the names of the classes, if there are classes."""

    splits: dict[str, list[Example]]
    classes: tuple[str, ...]


def read_examples(source: Source) -> OwnExamples:
    """Reads all files of `source`.

    A split without a file is cut from the training examples as in `held_out`: first ``validation``, then ``test``, each
    a tenth of what is left, and of each class if there are classes.

    Raises:
      UserError: a file is malformed, a column is missing, a class is not in the train split or is the only one, or an
        id is there twice.
    """
    with_classes = source.kind.name == "classification"
    splits: dict[str, list[Example]] = {}
    classes: tuple[str, ...] = ()
    ids: dict[str, str] = {}  # and where each is
    for split, names in source.files.splits.items():
        tables = [open_table(source, name) for name in names]
        pairs = [pair for table in tables for pair in _read(source, table)]
        if split == "train" and with_classes:
            classes = _classes([example[-1] for _, example in pairs], source, tables[0])
        if with_classes:
            _refuse_unseen(pairs, classes, source.columns["label"])
        if "id" in source.columns:
            _refuse_repeated(pairs, ids, source.columns["id"])
        splits[split] = [example for _, example in pairs]
    stratum = str if with_classes else _one_stratum
    for split in ("validation", "test"):
        if split not in splits:
            splits["train"], splits[split] = cut_validation(splits["train"], stratum)
    return OwnExamples(splits, classes)


def open_table(source: Source, name: str) -> Table:
    """Opens a file; UserError if it lacks a column, or a setting that must name one is missing."""
    path = source.files.folder / name
    table = read_table(path)
    if not table.columns:
        raise UserError(f"{table.file} has no rows; expected one or more")
    listing = ", ".join(table.columns)
    for setting in source.kind.needs:
        if setting not in source.columns:
            raise UserError(
                f"task.{setting} is missing: task.kind={source.kind.name} needs it; the columns of {path.absolute()} "
                f"are {listing}"
            )
    for setting, column in source.columns.items():
        if column not in table.columns:
            raise UserError(
                f"task.{setting}={column!r}: {path.absolute()} has no such column; its columns are {listing}"
            )
    return table


def _read(source: Source, table: Table) -> Iterator[tuple[Row, Example]]:
    read, empty = _EXAMPLES[source.kind.name], True
    for row in table.rows(list(source.columns.values())):
        yield row, read(row, source.columns)
        empty = False
    if empty:
        raise UserError(f"{table.file} has no rows; expected one or more of {', '.join(source.columns.values())}")


def _classes(labels: list[str], source: Source, table: Table) -> tuple[str, ...]:
    """Returns the classes of the training examples, in the order of the data set that names them, or else sorted."""
    column, present = source.columns["label"], set(labels)
    named = [name for name in table.classes.get(column, ()) if name in present]
    classes = tuple(named if set(named) == present else sorted(present))
    if len(classes) < 2:
        raise UserError(
            f"task.label={column!r}: every row of {table.file.removeprefix('task.data_dir: ')} has the class "
            f"{shown(labels[0])}; expected two classes or more"
        )
    return classes


def _refuse_unseen(pairs: list[tuple[Row, Example]], classes: tuple[str, ...], column: str) -> None:
    class_names = set(classes)
    for row, example in pairs:
        if example[-1] not in class_names:
            raise row.error(column, f"a class of the train split: {shown(list(classes))}")


def _refuse_repeated(pairs: list[tuple[Row, Example]], ids: dict[str, str], column: str) -> None:
    for row, _ in pairs:
        if (first := ids.setdefault(row.identifier(column), row.where)) != row.where:
            raise row.error(column, f"an id that is not also at {first.removeprefix('task.data_dir: ')}")


def _labelled(row: Row, columns: Columns) -> Example:
    return (*_texts(row, columns), row.label(columns["label"]))


def _numbered(row: Row, columns: Columns) -> Example:
    return (*_texts(row, columns), repr(row.number(columns["label"])))


def _generated(row: Row, columns: Columns) -> Example:
    return row.text(columns["text"]), row.text(columns["label"])


def _chat(row: Row, columns: Columns) -> Example:
    chat = row.chat(columns["messages"])
    return to_json(chat[: last_answer(chat)]), to_json(chat)


def _texts(row: Row, columns: Columns) -> Example:
    return tuple(row.text(columns[setting]) for setting in ("text", "pair") if setting in columns)


def _one_stratum(label: str) -> str:
    """Groups all labels: numbers and texts are too many for a tenth of each."""
    return ""


_EXAMPLES: dict[str, Callable[[Row, Columns], Example]] = {
    "classification": _labelled,
    "regression": _numbered,
    "generation": _generated,
    "chat": _chat,
}
