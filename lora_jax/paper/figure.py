"""figure.png: a panel for each column, our figures with their spread beside the paper's."""

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes

from lora_jax.paper.table import BuiltTable, Line
from lora_jax.report.charts.style import BASELINE, GREY, LINES, STYLE, canvas, png

_PANELS = 3  # beside each other


def draw(table: BuiltTable) -> bytes:
    """Returns the PNG.

    Figures of an analogue are not the paper's. Where the table has full fine-tuning, its panels show differences to it,
    and else the paper's figures have an axis of their own, at the top of each panel.
    """
    by_difference = bool(table.analogue) and any(line.gaps for line in table.lines)
    lines = [line for line in table.lines if line.gaps or not by_difference]
    groups = dict.fromkeys(line.row.group for line in lines)
    labels = list(dict.fromkeys(line.row.name for line in lines))
    across = min(_PANELS, len(table.columns))
    down = math.ceil(len(table.columns) / across)
    with mpl.rc_context(STYLE):
        figure = canvas(down * (1.2 + 0.26 * len(labels)))
        panels: Sequence[Axes] = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
        for panel, title in zip(panels, table.columns, strict=False):
            for place, group in enumerate(groups):
                shown = [
                    (labels.index(line.row.name), ours)
                    for line in lines
                    if line.row.group == group and (ours := _ours(line, title, by_difference)) is not None
                ]
                _points(panel, shown, "o", LINES[place], group or "ours")
            paper = {labels.index(line.row.name): _paper(line, title, by_difference) for line in lines}
            published = [(place, figure) for place, figure in paper.items() if figure is not None]
            own_axis = bool(table.analogue) and not by_difference and bool(published)
            _points(panel.twiny() if own_axis else panel, published, "D", GREY, "paper")
            if own_axis:
                panel.plot([], [], "D", mfc="white", color=GREY, ms=4, label="paper (upper axis)")
            panel.set_title(title, fontsize=10)
            panel.set_yticks(range(len(labels)), labels)
            if by_difference:
                panel.axvline(0, color=BASELINE, lw=1)
        for panel in panels[len(table.columns) :]:
            panel.set_visible(False)
        panels[0].invert_yaxis()
        if by_difference:
            figure.supxlabel(f"difference to {table.protocol.recipe.baseline}", fontsize=10)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
        return png(figure)


def _ours(line: Line, title: str, by_difference: bool) -> tuple[float, float] | None:
    """Returns our figure, or its difference to full fine-tuning, with its spread."""
    ours = line.gaps[title].ours if by_difference else line.cells[title].ours
    return None if ours is None else (ours.value, ours.spread or 0.0)


def _paper(line: Line, title: str, by_difference: bool) -> tuple[float, float] | None:
    if by_difference:
        gap = line.gaps[title].paper
        return None if gap is None else (gap, 0.0)
    paper = line.cells[title].paper
    return None if paper is None else (paper.value, paper.spread or 0.0)


def _points(
    axes: Axes, points: Sequence[tuple[int, tuple[float, float]]], marker: str, colour: str, label: str
) -> None:
    """Draws values with their spreads, each at its place on the y-axis. Points of the paper are hollow."""
    places, values = [place for place, _ in points], [value for _, value in points]
    axes.errorbar(
        [value for value, _ in values],
        places,
        xerr=[spread for _, spread in values],
        fmt=marker,
        color=colour,
        mfc="white" if marker == "D" else colour,
        ms=5,
        lw=1.2,
        label=label,
    )
    if marker == "D" and axes.xaxis.get_ticks_position() == "top":
        axes.grid(False)
        axes.tick_params(colors=GREY, labelsize=8)
        axes.locator_params(axis="x", nbins=4)
