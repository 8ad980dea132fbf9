"""Reads text files line by line, so that neither a large file nor an endless line is ever in memory as a whole."""

import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lora_jax.data.bounded import LARGEST, open_bounded
from lora_jax.errors import UserError

LONGEST_LINE = 16 * 2**20  # bytes


def read_lines(path: Path, largest: int = LARGEST) -> Iterator[str]:
    """Yields the lines of a text file in UTF-8 with their line ends, without the file's byte order mark.

    A file that is called ``.gz`` is unpacked on the way.

    Raises:
      UserError: the file cannot be read, has or unpacks to more than `largest` bytes, or a line has more than
        LONGEST_LINE bytes, a NUL, or is not UTF-8. The message names the line.
    """
    where = f"task.data_dir: {path.absolute()}"
    with open_bounded(path, largest) as file:
        stream: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        read = 0
        for number in itertools.count(1):
            line = _next_line(stream, where)
            read += len(line)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(f"{where}, line {number}: has more than {LONGEST_LINE} bytes; expected at most so many")
            if read > largest:
                raise UserError(f"{where} unpacks to more than {largest} bytes; expected at most so many")
            yield _decoded(line, f"{where}, line {number}").removeprefix("\ufeff" if number == 1 else "")


def _next_line(stream: IO[bytes], where: str) -> bytes:
    try:
        return stream.readline(LONGEST_LINE + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{where} is not a readable gzip file ({error}); expected one") from error


def _decoded(line: bytes, where: str) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}, byte {error.start + 1}: {line[error.start : error.start + 4]!r} is not UTF-8 ({error.reason}); "
            f"expected UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{where}, byte {line.index(0) + 1}: has a NUL; expected UTF-8 text")
    return text
