"""Reads raw files of text: tables (CSV, TSV) with named columns, and lists of labels. Errors name the file and line."""

import csv
import io
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_jax.data.bounded import LARGEST, read_bytes
from lora_jax.data.text import is_utf8
from lora_jax.errors import UserError, shown

logger = logging.getLogger("lora_jax")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      values: by column.
      where: names the file and the line in an error.
    """

    values: Mapping[str, str]
    where: str

    def text(self, column: str) -> str:
        """Returns the text in `column`; UserError if it is blank."""
        if not self.values[column].strip():
            raise self.error(column, "a text")
        return self.values[column]

    def label(self, column: str, labels: Collection[str], expected: str) -> str:
        """Returns the label in `column`; UserError, which says what is `expected`, if it is not among `labels`."""
        if self.values[column] not in labels:
            raise self.error(column, expected)
        return self.values[column]

    def number(self, column: str) -> float:
        """Returns the number in `column`; UserError if it is none, or not finite."""
        try:
            value = float(self.values[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(column, "a finite number")
        return value

    def error(self, column: str, expected: str) -> UserError:
        """Returns the error that the value in `column` is not as `expected`."""
        return UserError(f"{self.where}: {column}={shown(self.values[column])}; expected {expected}")


def read_csv(path: Path, columns: Sequence[str]) -> list[Row]:
    """Returns the rows of a CSV file with a header. It may have other columns than `columns`, in any order.

    Raises:
      UserError: the file cannot be read, is not UTF-8, has no rows, is malformed, or lacks a column.
    """
    records = _records(path, Commas)
    return _rows(path, records, _header(path, records, columns), columns)


def read_tsv(
    path: Path,
    columns: Sequence[str],
    *,
    separator: str = "\t",
    header: bool = False,
    ragged: bool = False,
    largest: int = LARGEST,
) -> list[Row]:
    """Returns the rows of a file whose columns are separated by tabs. Quotes are plain letters.

    Args:
      path: the file.
      columns: all columns of the file, in order; with a `header`, those to read.
      separator: stands between columns.
      header: whether the first line names the columns, as in `read_csv`.
      ragged: leave out rows with too few columns, and ignore what follows the last column, as users of Python's
        `csv.DictReader` do; by default such rows are refused.
      largest: the most bytes that the file may have.

    Raises:
      UserError: as in `read_csv`.
    """
    dialect = type("_Separated", (Tabs,), {"delimiter": separator})
    records = _records(path, dialect, largest)
    return _rows(path, records, _header(path, records, columns) if header else columns, columns, ragged)


def read_labels(path: Path) -> list[str]:
    """Returns the labels in a JSON file: a list of two or more different names.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    text = read_text(path)
    try:
        labels = json.loads(text)
        usable = isinstance(labels, list) and all(map(_is_label, labels)) and 1 < len(labels) == len(set(labels))
    except (ValueError, RecursionError):
        usable = False
    if not usable:
        raise UserError(
            f"task.data_dir: {path.absolute()}: expected a JSON list of two or more different names, each on one line"
        )
    return labels


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Returns the content of a text file in UTF-8, without its byte order mark.

    Raises UserError if it is not text, or has more than `largest` bytes.
    """
    content = read_bytes(path, largest)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"task.data_dir: {path.absolute()}, byte {error.start}: {content[error.start : error.start + 4]!r} is not "
            f"UTF-8 ({error.reason}); expected UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{_where(path, line)}: has a NUL, byte {content.index(0)}; expected UTF-8 text")
    return text.removeprefix("\ufeff")


class Commas(csv.excel):
    """CSV with commas, as Excel writes it."""

    strict = True


class Tabs(csv.Dialect):
    """Fields between tabs. Quotes are plain letters."""

    delimiter, quoting, lineterminator, strict = "\t", csv.QUOTE_NONE, "\n", True


def parse_records(lines: Iterable[str], dialect: type[csv.Dialect], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the line at which each record begins, and its fields. Blank lines are passed over.

    Raises:
      UserError: a record is malformed. The message names `path` and the line.
    """
    reader = csv.reader(lines, dialect)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{_where(path, line)}: {error}; expected closed quotes, and at most {csv.field_size_limit()} "
                f"characters in a field"
            ) from None
        if fields:
            yield line, fields


def _records(path: Path, dialect: type[csv.Dialect], largest: int = LARGEST) -> Iterator[tuple[str, list[str]]]:
    """Yields where each record is, and its fields."""
    lines = io.StringIO(read_text(path, largest), newline="")
    return ((_where(path, line), fields) for line, fields in parse_records(lines, dialect, path))


def _header(path: Path, records: Iterator[tuple[str, list[str]]], columns: Sequence[str]) -> list[str]:
    where, header = next(records, (_where(path, 1), []))
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) < len(header):
        fault = f"no column {', '.join(missing)}" if missing else "a column twice"
        raise UserError(f"{where}: the header {shown(','.join(header))} has {fault}; expected {','.join(columns)}")
    return header


def _rows(
    path: Path,
    records: Iterator[tuple[str, list[str]]],
    header: Sequence[str],
    columns: Sequence[str],
    ragged: bool = False,
) -> list[Row]:
    rows, short = [], 0
    for where, fields in records:
        if ragged and len(fields) < len(header):
            short += 1
            continue
        if not ragged and len(fields) != len(header):
            raise UserError(
                f"{where}: {len(fields)} columns, {shown(','.join(fields))}; expected {len(header)}: "
                f"{', '.join(header)}"
            )
        values = dict(zip(header, fields, strict=not ragged))
        rows.append(Row({column: values[column] for column in columns}, where))
    if short:
        logger.warning("%s: %d rows have fewer than %d columns, and are left out", path.absolute(), short, len(header))
    if not rows:
        raise UserError(f"task.data_dir: {path.absolute()} has no rows; expected one or more of {', '.join(columns)}")
    return rows


def _is_label(name: object) -> bool:
    """Returns whether TFDS, which writes one name a line and strips it, reads back the same name."""
    return isinstance(name, str) and name.split("\n") == [name.strip()] != [""] and "\r" not in name and is_utf8(name)


def _where(path: Path, line: int) -> str:
    return f"task.data_dir: {path.absolute()}, line {line}"
