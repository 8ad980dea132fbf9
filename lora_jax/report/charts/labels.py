"""Labels on a chart that keep out of each other's way."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class EndLabel:
    """The label of a line, at the height `y` where the line ends."""

    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class PointLabel:
    """The label of a point, whose error bar reaches `bar` up and down."""

    x: float
    y: float
    bar: float
    text: str
    colour: str


def end_labels(figure: Figure, ax: Axes, ends: list[EndLabel]) -> None:
    """Writes texts at the right of the axes at the heights of their lines, moved apart where they would overlap."""
    size = 9.0 if len(ends) <= 12 else 7.5
    low, high = ax.get_ylim()
    step = 1.3 * size / 72 / (figure.get_figheight() * 0.8)  # a line of text, as a share of the axes' height
    wanted_places = sorted((min(max((end.y - low) / (high - low), 0.0), 1.0), index) for index, end in enumerate(ends))
    blocks: list[list[float]] = []  # labels that touch: the sum of their wanted places, less their own height; how many
    for place, (y, _) in enumerate(wanted_places):
        blocks.append([y - place * step, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + number]
    bottoms = [total / number for total, number in blocks for _ in range(int(number))]
    heights = [bottom + place * step for place, bottom in enumerate(bottoms)]
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], 1.0 - (len(heights) - 1 - place) * step)
    for (y, index), height in zip(wanted_places, heights, strict=True):
        colour = ends[index].colour
        ax.annotate(
            ends[index].text,
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


def point_labels(figure: Figure, ax: Axes, points: list[PointLabel]) -> None:
    """Writes texts beside their points, the first in the list first.

    A text without room is left out: its point's colour says the same.
    """
    figure.canvas.draw()
    scale = figure.dpi / 72
    near = 5 * scale
    boxes = []
    for point in points:
        ends = [(point.x, point.y - point.bar), (point.x, point.y + point.bar)]
        (left, bottom), (right, top) = ax.transData.transform(ends)
        boxes.append((left - near, bottom - near, right + near, top + near))
    frame = ax.get_window_extent()
    sides = [(0, 13, "center"), (9, 0, "left"), (-9, 0, "right"), (0, -13, "center")]
    sides += [(dx, dy, "left" if dx > 0 else "right") for dx in (8, -8) for dy in (11, -11)]
    for point in points:
        at = ax.transData.transform((point.x, point.y))
        wide, tall = 5.6 * len(point.text) * scale, 11 * scale
        for dx, dy, align in sides:
            left = at[0] + dx * scale - {"left": 0, "center": wide / 2, "right": wide}[align]
            box = (left, at[1] + dy * scale - tall / 2, left + wide, at[1] + dy * scale + tall / 2)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                place: Any = {"textcoords": "offset points", "ha": align, "va": "center"}
                ax.annotate(point.text, (point.x, point.y), (dx, dy), fontsize=9, color=point.colour, **place)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def are_apart(values: list[float], share: float) -> bool:
    """Returns whether neighbours on a log axis are at least `share` of its length apart."""
    logs = [math.log(value) for value in values]
    return len(logs) < 2 or min(b - a for a, b in itertools.pairwise(logs)) > share * (logs[-1] - logs[0]) / 1.5
