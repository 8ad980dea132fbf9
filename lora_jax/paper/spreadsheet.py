"""table.csv: a line for each figure, at full precision. What is not known is an empty cell."""

import csv
import io
from typing import Any

from lora_jax.paper.table import BuiltTable


def spreadsheet(table: BuiltTable) -> str:
    """Returns the content of table.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = ("group", "row", "trainable", "column", "ours", "spread", "seeds", "lr", "paper_row", "paper")
    writer.writerow([*titles, "paper_spread", "difference", "tolerance", "verdict"])
    tasks = {column.title: column.task for column in table.protocol.recipe.columns}
    for line in table.lines:
        for title in table.columns:
            cell, rate = line.cells[title], line.rates.get(tasks.get(title, ""))
            ours, paper = cell.ours, cell.paper
            values: list[Any] = [line.row.group, line.row.name, line.trainable, title]
            values += [None, None, 0] if ours is None else [ours.value, ours.spread, ours.seeds]
            values += [rate and rate[0], line.paper and line.paper.name]
            values += [None, None] if paper is None else [paper.value, paper.spread]
            writer.writerow([*values, cell.difference, cell.tolerance, cell.verdict])
    return text.getvalue()
