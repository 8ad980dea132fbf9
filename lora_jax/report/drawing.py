"""How every figure here looks: style, a run's colour, and labels that keep out of each other's way."""

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_jax.report.rows import Row

FULL, INK, GREY = "#1a1a1a", "#333333", "#8a8a8a"
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
        plain = [row for row in rows if row.rank is not None]
        keys: list[tuple[str, Callable[[Row], Any]]] = [
            ("rank", lambda row: row.rank),
            ("targets", lambda row: row.targets),
            ("lr", lambda row: row.lr),
            ("alpha", lambda row: row.alpha),
            ("seed", lambda row: row.seed),
        ]
        self.name, self.key = next((pair for pair in keys if len({pair[1](row) for row in plain}) > 1), keys[0])
        values = list(dict.fromkeys(self.key(row) for row in plain))
        if self.name != "targets":
            values.sort(key=lambda value: (value is None, value))
        places = [0.3] if len(values) == 1 else np.linspace(0.08, 0.82, len(values))
        self.values = {
            value: mpl.colors.to_hex(mpl.colormaps["plasma"](place))
            for value, place in zip(values, places, strict=True)
        }
        others = sorted({row.method for row in rows if row.rank is None and row.method != "full"})
        self.methods = {method: LINES[(2 + index) % len(LINES)] for index, method in enumerate(others)}
        if any(row.method == "full" for row in rows):
            self.methods["full"] = FULL

    def of(self, row: Row) -> str:
        return self.methods[row.method] if row.rank is None else self.values[self.key(row)]

    def entries(self) -> list[tuple[str, str]]:
        """What each colour stands for, in order."""
        shown = [
            (f"{self.name} {value:g}" if isinstance(value, float) else f"{self.name} {value}", colour)
            for value, colour in self.values.items()
        ]
        return shown + [
            ("full fine-tuning" if name == "full" else name, colour) for name, colour in self.methods.items()
        ]


def canvas(height: float) -> Figure:
    """An empty figure, 8.6 inches wide and `height` inches high."""
    figure = Figure(figsize=(8.6, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def legend(ax: Axes, colours: Colours) -> None:
    for text, colour in colours.entries():
        ax.plot([], [], color=colour, lw=3, label=text)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)


def end_labels(figure: Figure, ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Texts at the right of the axes at their lines' heights, moved apart where they would overlap."""
    size = 9.0 if len(ends) <= 12 else 7.5
    low, high = ax.get_ylim()
    step = 1.3 * size / 72 / (figure.get_figheight() * 0.8)  # a line of text, as a share of the axes' height
    wanted = sorted((min(max((y - low) / (high - low), 0.0), 1.0), index) for index, (y, _, _) in enumerate(ends))
    blocks: list[list[float]] = []  # labels that touch: the sum of their wanted places, less their own height; how many
    for place, (y, _) in enumerate(wanted):
        blocks.append([y - place * step, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + number]
    bottoms = [total / number for total, number in blocks for _ in range(int(number))]
    heights = [bottom + place * step for place, bottom in enumerate(bottoms)]
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], 1.0 - (len(heights) - 1 - place) * step)
    for (y, index), height in zip(wanted, heights, strict=True):
        _, text, colour = ends[index]
        ax.annotate(
            text,
            (1.0, y),
            (1.035, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def point_labels(figure: Figure, ax: Axes, wanted: list[tuple[float, float, float, str, str]]) -> None:
    """Texts beside their points ``(x, y, error bar, text, colour)``, the first in the list first.

    A text without room is left out: its point's colour tells as much.
    """
    figure.canvas.draw()
    scale = figure.dpi / 72
    near = 5 * scale
    boxes = []
    for x, y, bar, _, _ in wanted:
        (left, bottom), (right, top) = ax.transData.transform([(x, y - bar), (x, y + bar)])
        boxes.append((left - near, bottom - near, right + near, top + near))
    frame = ax.get_window_extent()
    sides = [(0, 13, "center"), (9, 0, "left"), (-9, 0, "right"), (0, -13, "center")]
    sides += [(dx, dy, "left" if dx > 0 else "right") for dx in (8, -8) for dy in (11, -11)]
    for x, y, _, text, colour in wanted:
        at = ax.transData.transform((x, y))
        wide, tall = 5.6 * len(text) * scale, 11 * scale
        for dx, dy, align in sides:
            left = at[0] + dx * scale - {"left": 0, "center": wide / 2, "right": wide}[align]
            box = (left, at[1] + dy * scale - tall / 2, left + wide, at[1] + dy * scale + tall / 2)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                place: Any = {"textcoords": "offset points", "ha": align, "va": "center"}
                ax.annotate(text, (x, y), (dx, dy), fontsize=9, color=colour, **place)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def room(values: list[float], share: float) -> bool:
    """Whether neighbours on a log axis are at least `share` of its length apart."""
    logs = [math.log(value) for value in values]
    return len(logs) < 2 or min(b - a for a, b in itertools.pairwise(logs)) > share * (logs[-1] - logs[0]) / 1.5
