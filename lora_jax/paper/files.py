"""The files of a table: table.md, table.csv, table.tex and figure.png. Needs no JAX."""

from pathlib import Path

from lora_jax.paper.figure import draw
from lora_jax.paper.latex import latex
from lora_jax.paper.markdown import markdown
from lora_jax.paper.spreadsheet import spreadsheet
from lora_jax.paper.table import BuiltTable
from lora_jax.records import write_atomically


def write_table(table: BuiltTable, folder: Path) -> Path:
    """Writes the files of `table` into `folder`, and returns the path of table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.md", markdown(table)),
        ("table.csv", spreadsheet(table)),
        ("table.tex", latex(table)),
    ):
        write_atomically(folder / name, text.encode())
    write_atomically(folder / "figure.png", draw(table))
    return folder / "table.md"
