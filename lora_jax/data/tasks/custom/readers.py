"""Reads the user's files row by row: tables of text, JSON lines, and the Arrow and Parquet files of data sets."""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lora_jax.data.bounded import open_bounded, read_bytes
from lora_jax.data.json_lines import parse_json
from lora_jax.data.lines import read_lines
from lora_jax.data.tables import Commas, Tabs, parse_records
from lora_jax.data.tasks.custom.files import DATASET_INFO
from lora_jax.data.tasks.custom.rows import Row
from lora_jax.errors import UserError, message_of, shown

LARGEST = 4 * 2**30  # bytes of a file


@dataclass(frozen=True)
class Table:
    """A file that is open for reading.

    Attributes:
      file: names it in an error.
      columns: the names of the columns; of JSON, the keys of the first line.
      rows: returns the rows with the values of some columns, once.
      classes: the names of the classes in columns that hold their numbers.
    """

    file: str
    columns: tuple[str, ...]
    rows: Callable[[Collection[str]], Iterator[Row]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """Opens a file whose format its name tells.

    Raises:
      UserError: the file cannot be read, is malformed or has no rows; also later, while rows are read.
    """
    return _READERS[path.name.removesuffix(".gz").rpartition(".")[2]](path)


def _read_separated(path: Path, dialect: type[csv.Dialect]) -> Table:
    file = _file(path)
    records = _records(path, dialect)
    place, header = next(records, ("line 1", []))
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise UserError(f"{file}, {place}: the header {shown(','.join(header))} has the column {twice!r} twice")

    def rows(columns: Collection[str]) -> Iterator[Row]:
        for place, fields in records:
            if len(fields) != len(header):
                raise UserError(
                    f"{file}, {place}: {len(fields)} columns, {shown(','.join(fields))}; expected {len(header)}: "
                    f"{','.join(header)}"
                )
            values = dict(zip(header, fields, strict=True))
            yield Row({column: values[column] for column in columns}, file, place)

    return Table(file, tuple(header), rows)


def _records(path: Path, dialect: type[csv.Dialect]) -> Iterator[tuple[str, list[str]]]:
    """Yields the line at which each record begins, and its fields. Blank lines are passed over."""
    # A line may also end with a lone carriage return, as csv.reader wants it.
    pieces = (
        piece
        for line in read_lines(path, LARGEST)
        for piece in (re.split(r"(?<=\r)(?!\n)", line) if "\r" in line else (line,))
    )
    return ((f"line {line}", fields) for line, fields in parse_records(pieces, dialect, path))


def _read_json_lines(path: Path) -> Table:
    file = _file(path)

    def records() -> Iterator[Row]:
        for number, line in enumerate(read_lines(path, LARGEST), 1):
            if line.strip():
                value = parse_json(line.strip(), file, number)
                if not isinstance(value, dict):
                    raise UserError(f"{file}, line {number} holds {shown(value)}; expected an object")
                yield Row(value, file, f"line {number}")

    def rows(columns: Collection[str]) -> Iterator[Row]:
        for row in records():
            values = {column: row.values[column] for column in columns if column in row.values}
            yield Row(values, file, row.place)

    first = next(records(), None)
    return Table(file, () if first is None else tuple(first.values), rows)


def _read_parquet(path: Path) -> Table:
    from pyarrow import parquet

    with _reading(path) as stream:
        schema = parquet.ParquetFile(stream).schema_arrow

    def batches(columns: Collection[str]) -> Iterator[Any]:
        with _reading(path) as stream:
            yield from parquet.ParquetFile(stream).iter_batches(columns=list(columns))

    return _arrow_table(path, schema, batches)


def _read_arrow(path: Path) -> Table:
    with _reading(path) as stream:
        schema = _arrow_reader(stream)[0]

    def batches(columns: Collection[str]) -> Iterator[Any]:
        with _reading(path) as stream:
            for batch in _arrow_reader(stream)[1]:
                yield batch.select(list(columns))

    return _arrow_table(path, schema, batches)


def _arrow_reader(stream: BinaryIO) -> tuple[Any, Iterator[Any]]:
    """Returns the schema and the batches of an Arrow file: a stream, as `datasets` writes it, or one with an index."""
    from pyarrow import ipc

    if stream.read(6) != b"ARROW1":
        stream.seek(0)
        reader = ipc.open_stream(stream)
        return reader.schema, iter(reader)
    stream.seek(0)
    indexed = ipc.open_file(stream)
    return indexed.schema, (indexed.get_batch(i) for i in range(indexed.num_record_batches))


def _arrow_table(path: Path, schema: Any, batches: Callable[[Collection[str]], Iterator[Any]]) -> Table:
    import pyarrow

    file, names = _file(path), _class_names(path, schema)
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{file} has a column twice: {shown(schema.names)}")

    def rows(columns: Collection[str]) -> Iterator[Row]:
        number = 0
        for batch in batches(columns):
            try:
                batch.validate(full=True)
                values = batch.to_pylist()
            except (pyarrow.ArrowException, ValueError, OverflowError) as error:
                raise UserError(f"{file}, after row {number}: {message_of(error)}; expected valid values") from None
            for row in values:
                number += 1
                named = {column: _named(row[column], names.get(column, ())) for column in columns}
                yield Row(named, file, f"row {number}")

    return Table(file, tuple(schema.names), rows, names)


def _named(value: Any, classes: tuple[str, ...]) -> Any:
    """Returns the name of a class for its number; any other value as it is."""
    return classes[value] if type(value) is int and 0 <= value < len(classes) else value


def _class_names(path: Path, schema: Any) -> dict[str, tuple[str, ...]]:
    """Returns the names of the classes of each column, as `datasets` writes them into a file or beside it."""
    embedded = (schema.metadata or {}).get(b"huggingface")
    beside = path.with_name(DATASET_INFO)
    if embedded is not None:
        where, content = f"{_file(path)}, huggingface", embedded
    elif beside.exists():
        where, content = _file(beside), read_bytes(beside)
    else:
        return {}
    try:
        info = json.loads(content)
        features = info["info"]["features"] if embedded is not None else info["features"]
        names = {
            column: tuple(feature["names"])
            for column, feature in (features or {}).items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: {type(error).__name__}, {message_of(error)}; expected the features of a data set"
        ) from None
    for column, classes in names.items():
        usable = all(isinstance(name, str) and name.split("\n") == [name.strip()] != [""] for name in classes)
        if not usable or len(set(classes)) < len(classes):
            raise UserError(f"{where}: {column} has the classes {shown(classes)}; expected different names")
    return names


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for pyarrow, whose errors become UserErrors."""
    import pyarrow

    with open_bounded(path, LARGEST) as stream:
        try:
            yield stream
        except (pyarrow.ArrowException, OSError, EOFError) as error:
            raise UserError(f"{_file(path)}: {message_of(error)}; expected a whole {path.suffix} file") from None


def _file(path: Path) -> str:
    return f"task.data_dir: {path.absolute()}"


_READERS: dict[str, Callable[[Path], Table]] = {
    "csv": lambda path: _read_separated(path, Commas),
    "tsv": lambda path: _read_separated(path, Tabs),
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
