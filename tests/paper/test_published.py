"""The paper's figures in the package, against a copy that was made by hand, and against each other."""

import re
import statistics
from pathlib import Path

import pytest

from lora_jax.paper.published import Figure, published_table, published_tables

COPY = (Path(__file__).parent / "published.md").read_text(encoding="utf-8")
SHORT = {"base": "RoBERTa base", "large": "RoBERTa large", "M": "GPT-2 medium", "L": "GPT-2 large"}


def copied(number: int) -> list[dict[str, str]]:
    """Returns the rows of a table in published.md, by the titles of its columns."""
    lines = re.split(rf"^## Table {number}$", COPY, flags=re.M)[1].partition("\n## ")[0].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def name_of(number: int, row: dict[str, str]) -> str:
    if number == 18:
        return f"GPT-2 medium LoRA r={row['r']}"
    text = row.get("Model / method") or row["Method"]
    model, _, method = text.partition(", ") if ", " in text else text.partition(" ")
    return f"{SHORT.get(model, model)} {method} {row['Trainable']}"


@pytest.mark.parametrize(("number", "rows"), [(2, 14), (3, 12), (18, 11)])
def test_every_figure_is_that_of_the_copy(number, rows):
    table = published_table(f"table{number}")
    copy = {name_of(number, row): row for row in copied(number)}
    assert len(table) == rows and list(table) == list(copy)
    for name, row in table.items():
        cells = {"val loss" if title == "validation loss" else title: f for title, f in row.figures.items()}
        assert cells == {title: Figure.parse(copy[name][title]) for title in cells}
        assert len(cells) == (9 if number == 2 else 5 if number == 3 else 6)


def test_averages_of_table_2_are_those_of_its_columns():
    """The paper averages the unrounded scores, and rounds to a tenth."""
    for row in published_table("table2").values():
        values = [figure.value for title, figure in row.figures.items() if title != "Avg"]
        assert abs(statistics.fmean(values) - row.figures["Avg"].value) <= 0.11, row.name


def test_figures_are_parsed_as_printed():
    assert Figure.parse("87.5±.3") == Figure(87.5, 0.3, 1)
    assert Figure.parse(".4565") == Figure(0.4565, None, 4)
    with pytest.raises(ValueError, match=r"'87,5' is not a figure"):
        Figure.parse("87,5")
    assert published_tables() == ["table18", "table2", "table3"]
