"""Reads raw files of JSON, whole or one object a line. Errors name the file, the line or index, and the key."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lora_jax.data.tables import read_text
from lora_jax.data.text import is_utf8
from lora_jax.errors import UserError, message_of, shown


@dataclass(frozen=True)
class Record:
    """One object, or one array whose places have names.

    Every method raises UserError if the record has no such key, or another kind of value there.

    Attributes:
      values: by key.
      where: names the file and the place in it in an error.
    """

    values: Mapping[str, Any]
    where: str

    def string(self, key: str) -> str:
        """Returns the text in `key`, which may be blank."""
        value = self._value(key, "a text")
        if not isinstance(value, str) or not is_utf8(value):
            raise self.error(key, "a text")
        return value

    def text(self, key: str) -> str:
        """Returns the text in `key`; UserError if it is blank."""
        value = self.string(key)
        if not value.strip():
            raise self.error(key, "a text")
        return value

    def scalar(self, key: str) -> str:
        """Returns the text in `key`, or the finite number there as Python writes it."""
        value = self._value(key, "a text or a number")
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            return str(value)
        if not isinstance(value, str) or not is_utf8(value):
            raise self.error(key, "a text or a finite number")
        return value

    def index(self, key: str, size: int) -> int:
        """Returns the position in `key` of one of `size` things, counted from 0."""
        expected = f"a whole number from 0 to {size - 1}"
        value = self._value(key, expected)
        if type(value) is not int or not 0 <= value < size:
            raise self.error(key, expected)
        return value

    def record(self, key: str) -> "Record":
        """Returns the object in `key`."""
        if not isinstance(value := self._value(key, "an object"), dict):
            raise self.error(key, "an object")
        return Record(value, f"{self.where}, {key}")

    def records(self, key: str) -> list["Record"]:
        """Returns the objects of the list in `key`; UserError if it is empty."""
        values = self._list(key, "a list of one or more objects", 1)
        return [_record(value, f"{self.where}, {key}[{i}]") for i, value in enumerate(values)]

    def rows(self, key: str, columns: Sequence[str], least: int = 1) -> list["Record"]:
        """Returns the lists in the list in `key`, each as a record with `columns`; UserError for fewer than `least`."""
        expected = f"a list of {least} or more lists of {', '.join(columns)}"
        rows = []
        for i, value in enumerate(self._list(key, expected, least)):
            where = f"{self.where}, {key}[{i}]"
            if not isinstance(value, list) or len(value) != len(columns):
                raise UserError(f"{where} is {shown(value)}; expected a list of {', '.join(columns)}")
            rows.append(Record(dict(zip(columns, value, strict=True)), where))
        return rows

    def strings(self, key: str) -> list[str]:
        """Returns the texts of the list in `key`, which may be blank; UserError if it is empty."""
        values = self._list(key, "a list of one or more texts", 1)
        places = Record({str(i): value for i, value in enumerate(values)}, f"{self.where}, {key}")
        return [places.string(place) for place in places.values]

    def numbers(self, key: str) -> list[float]:
        """Returns the numbers of the list in `key`."""
        expected = "a list of numbers"
        for i, value in enumerate(values := self._list(key, expected, 0)):
            if type(value) not in (int, float):
                raise UserError(f"{self.where}: {key}[{i}]={shown(value)}; expected a number")
        return values

    def error(self, key: str, expected: str) -> UserError:
        """Returns the error that the value in `key` is not as `expected`."""
        return UserError(f"{self.where}: {key}={shown(self.values[key])}; expected {expected}")

    def _list(self, key: str, expected: str, least: int) -> list[Any]:
        value = self._value(key, expected)
        if not isinstance(value, list) or len(value) < least:
            raise self.error(key, expected)
        return value

    def _value(self, key: str, expected: str) -> Any:
        if key not in self.values:
            raise UserError(f"{self.where}: has no {key}; expected {expected}")
        return self.values[key]


def read_json(path: Path) -> Record:
    """Returns the object that a JSON file holds. Raises UserError if it cannot be read, or holds something else."""
    where = f"task.data_dir: {path.absolute()}"
    return _record(parse_json(read_text(path), where, 1), where)


def read_json_list(path: Path) -> list[Record]:
    """Returns the objects of the list that a JSON file holds.

    Raises:
      UserError: the file cannot be read, or holds something else than a list of one or more objects.
    """
    where = f"task.data_dir: {path.absolute()}"
    values = parse_json(read_text(path), where, 1)
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} holds {shown(values)}; expected a list of one or more objects")
    return [_record(value, f"{where}, [{i}]") for i, value in enumerate(values)]


def read_json_lines(path: Path) -> list[Record]:
    """Returns the objects of a file with one object a line. Blank lines are passed over.

    Raises:
      UserError: the file cannot be read, has no object, or a line holds something else.
    """
    where = f"task.data_dir: {path.absolute()}"
    # Not splitlines: JSON texts may hold U+2028 and others that it splits at.
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{where} has no line; expected one or more, each an object in JSON")
    return [_record(parse_json(line, where, number), f"{where}, line {number}") for number, line in lines]


def parse_json(text: str, where: str, first_line: int) -> Any:
    """Returns the value that `text` holds, whose first line has the number `first_line` in the file.

    Raises UserError if it is not JSON. The message begins with `where`.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, line {first_line + error.lineno - 1}, column {error.colno}: {error.msg}; expected JSON"
        ) from None
    except (ValueError, RecursionError) as error:  # NaN; numbers of thousands of digits; thousands of brackets
        raise UserError(f"{where}, from line {first_line}: {message_of(error)}; expected JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {shown(value)}; expected an object")
    return Record(value, where)
