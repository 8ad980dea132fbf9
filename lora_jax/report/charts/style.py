"""The look of every chart: its style, its size, and the colour of a run."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_jax.report.rows import Row

BASELINE, INK, GREY = "#1a1a1a", "#333333", "#8a8a8a"
LINES = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a5195",
    "#8c6d31",
    "#332288",
    "#117733",
    "#882255",
    "#999933",
]
MARKERS = "osD^vPXh"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,  # two $ in a target's regular expression are no formula
    "text.color": INK,
    "axes.edgecolor": "#bbbbbb",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#ebebeb",
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


class Colours:
    """A colour for every run: sequential over ranks (or over what differs instead), dark for full fine-tuning."""

    def __init__(self, rows: list[Row]):
        ranked = [row for row in rows if row.rank is not None]
        keys: list[tuple[str, Callable[[Row], Any]]] = [
            ("rank", lambda row: row.rank),
            ("method", lambda row: row.method_title),
            ("targets", lambda row: row.targets),
            ("lr", lambda row: row.lr),
            ("alpha", lambda row: row.alpha),
            ("seed", lambda row: row.seed),
        ]
        self.name, self.key = next((pair for pair in keys if len({pair[1](row) for row in ranked}) > 1), keys[0])
        values = list(dict.fromkeys(self.key(row) for row in ranked))
        if self.name != "targets":
            values.sort(key=lambda value: (value is None, value))
        places = [0.3] if len(values) == 1 else np.linspace(0.08, 0.82, len(values))
        self.values = {
            value: mpl.colors.to_hex(mpl.colormaps["plasma"](place))
            for value, place in zip(values, places, strict=True)
        }
        unranked = [row for row in rows if row.rank is None]
        others = sorted({row.method_title for row in unranked if not row.trains_base})
        self.methods = {title: LINES[(2 + index) % len(LINES)] for index, title in enumerate(others)}
        self.methods |= {row.method_title: BASELINE for row in unranked if row.trains_base}

    def of(self, row: Row) -> str:
        return self.methods[row.method_title] if row.rank is None else self.values[self.key(row)]

    def entries(self) -> list[tuple[str, str]]:
        """Returns what each colour stands for, and the colour, in order."""
        prefix = "" if self.name == "method" else f"{self.name} "
        values = [
            (f"{prefix}{value:g}" if isinstance(value, float) else f"{prefix}{value}", colour)
            for value, colour in self.values.items()
        ]
        return [*values, *self.methods.items()]


def canvas(height: float) -> Figure:
    """Returns an empty figure, 8.6 inches wide and `height` inches high."""
    figure = Figure(figsize=(8.6, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def colour_legend(ax: Axes, colours: Colours) -> None:
    for text, colour in colours.entries():
        ax.plot([], [], color=colour, lw=3, label=text)
    legend_beside(ax)


def legend_beside(ax: Axes) -> None:
    """Puts the legend of what is drawn at the right of the axes."""
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
