"""Rows of the user's tables. Errors name the file, the row and the column."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_jax.data.chats import ASSISTANT, ROLES, Chat, Message
from lora_jax.data.text import is_utf8
from lora_jax.errors import UserError, shown

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Every method raises UserError if the value in a column is not as the method returns it.

    Attributes:
      values: by column, as the file's format holds them: CSV has texts alone.
      file: names the file in an error.
      place: names the row in an error.
    """

    values: Mapping[str, Any]
    file: str
    place: str

    @property
    def where(self) -> str:
        return f"{self.file}, {self.place}"

    def text(self, column: str) -> str:
        """Returns the text in `column`."""
        value = self._value(column, "a text")
        if not isinstance(value, str) or not value.strip() or not is_utf8(value):
            raise self.error(column, "a text")
        return value

    def label(self, column: str) -> str:
        """Returns the name of the class in `column`: a text of one line without the space around it, or an integer."""
        expected = "a class: a text of one line, or a whole number"
        value = self._value(column, expected)
        if isinstance(value, bool | int):
            return str(value).lower()
        if not isinstance(value, str) or not is_utf8(value) or not value.strip() or len(value.strip().split("\n")) > 1:
            raise self.error(column, expected)
        if "\r" in value.strip():
            raise self.error(column, expected)
        return value.strip()

    def number(self, column: str) -> float:
        """Returns the number in `column`, which may be written as a text, within float32."""
        expected = f"a finite number, from {-_LARGEST:.3g} to {_LARGEST:.3g}"
        value = self._value(column, expected)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= _LARGEST:
            raise self.error(column, expected)
        return number

    def identifier(self, column: str) -> str:
        """Returns the text or whole number in `column`."""
        expected = "a text or a whole number"
        value = self._value(column, expected)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.error(column, expected)
        return str(value)

    def chat(self, column: str) -> Chat:
        """Returns the conversation in `column`, a list of ``{"role", "content"}``, some of the assistant."""
        expected = 'a list of one or more {"role": ..., "content": ...}'
        value = self._value(column, expected)
        if not isinstance(value, list) or not value:
            raise self.error(column, expected)
        chat = tuple(self._message(message, f"{column}[{i}]") for i, message in enumerate(value))
        if not any(message.role == ASSISTANT for message in chat):
            raise self.error(column, f"a message with the role {ASSISTANT} or more")
        return chat

    def error(self, column: str, expected: str) -> UserError:
        """Returns the error that the value in `column` is not as `expected`."""
        return UserError(f"{self.where}: {column}={shown(self.values[column])}; expected {expected}")

    def _message(self, value: Any, name: str) -> Message:
        if not isinstance(value, dict):
            raise UserError(f'{self.where}: {name}={shown(value)}; expected {{"role": ..., "content": ...}}')
        role, content = value.get("role"), value.get("content")
        if role not in ROLES:
            raise UserError(f"{self.where}: {name}.role={shown(role)}; expected {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip() or not is_utf8(content):
            raise UserError(f"{self.where}: {name}.content={shown(content)}; expected a text")
        return Message(role, content)

    def _value(self, column: str, expected: str) -> Any:
        if column not in self.values:
            raise UserError(f"{self.where}: has no {column}; expected {expected}")
        return self.values[column]
