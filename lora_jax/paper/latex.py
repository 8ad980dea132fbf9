"""table.tex: our lines and the paper's, for LaTeX with the package booktabs."""

from lora_jax.paper.markdown import figure_text, paper_text, parameters_text
from lora_jax.paper.table import BuiltTable

_SPECIAL = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "†": r"$^\dagger$", "±": r"$\pm$", "–": "--"}


def latex(table: BuiltTable) -> str:
    """Returns the content of table.tex."""
    head = ["Method", "Trainable", *table.columns]
    lines = [rf"% {table.protocol.recipe.title}. Needs \usepackage{{booktabs}}."]
    lines += [rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}", r"\toprule", _row(head), r"\midrule"]
    for line in table.lines:
        ours = [figure_text(line.cells[title]) for title in table.columns]
        lines.append(_row([line.row.name, parameters_text(line.trainable), *ours]))
        if line.paper is not None:
            paper = [paper_text(line.cells[title].paper) for title in table.columns]
            lines.append(_row([rf"\quad paper: {line.paper.name}", line.paper.trainable, *paper]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _row(cells: list[str]) -> str:
    return " & ".join("".join(_SPECIAL.get(letter, letter) for letter in cell) for cell in cells) + r" \\"
