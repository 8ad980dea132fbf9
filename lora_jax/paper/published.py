"""The figures that the paper prints, copied into ``tables/*.csv``. Needs no JAX.

`*` marks rows that the paper took from prior work. `†` marks its setup after Houlsby et al.: sequence length 128, one
batch size, no start from the MNLI adapter.
"""

import csv
import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

TABLES = Path(__file__).parent / "tables"
_FIGURE = re.compile(r"(\d*\.?\d+)(?:±(\d*\.?\d+))?")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value with its spread over seeds. `digits` is how many decimals the paper prints."""

    value: float
    spread: float | None = None
    digits: int = 1

    @classmethod
    def parse(cls, cell: str) -> "Figure":
        """Returns the figure of a cell such as ``87.5±.3``. Raises ValueError for another text."""
        match = _FIGURE.fullmatch(cell)
        if match is None:
            raise ValueError(f"{cell!r} is not a figure such as 87.5±.3")
        return cls(float(match[1]), float(match[2]) if match[2] else None, len(match[1].partition(".")[2]))


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A row of a table of the paper.

    Attributes:
      name: model, method and, where the table has it, the number of trained parameters: "RoBERTa base LoRA 0.3M".
      model: the base, "RoBERTa base".
      trainable: the trained parameters as printed, or an empty text.
      figures: by the title of the column.
    """

    name: str
    model: str
    trainable: str
    figures: Mapping[str, Figure]


@functools.cache
def published_table(name: str) -> Mapping[str, PublishedRow]:
    """Returns the rows of ``tables/<name>.csv`` by their names, in the paper's order."""
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = [_row(cells) for cells in csv.DictReader(file)]
    return {row.name: row for row in rows}


def published_tables() -> list[str]:
    """Returns the names of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.csv"))


def _row(cells: dict[str, str]) -> PublishedRow:
    model, method, trainable = cells.pop("model"), cells.pop("method"), cells.pop("trainable")
    name = " ".join(filter(None, (model, method, trainable)))
    return PublishedRow(name, model, trainable, {title: Figure.parse(cell) for title, cell in cells.items() if cell})
