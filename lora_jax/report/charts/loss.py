"""The training loss of every run against its training tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lora_jax.report.charts.labels import EndLabel, end_labels
from lora_jax.report.charts.style import Colours, canvas, colour_legend, png
from lora_jax.report.compare import Configuration, labels, several_lrs
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row
from lora_jax.report.tables import parameters

LABELLED = 10  # most curves that are labelled one by one
SMOOTHED_PART = 40  # a point is the mean over the last fortieth of its run's records


@dataclass(frozen=True)
class Curve:
    row: Row
    tokens: np.ndarray
    loss: np.ndarray
    smoothed: bool

    @property
    def broke_off(self) -> bool:
        return self.row.status in ("diverged", "failed")

    def end(self, top: float) -> tuple[float, float]:
        """Returns the point where the curve leaves axes that reach up to `top`, or else its last."""
        above = self.loss > top
        last = int(np.argmax(above)) if above.any() else -1
        return self.tokens[last], min(self.loss[last], top)


def training_loss(rows: list[Row]) -> Picture | None:
    curves = [curve for row in rows if (curve := _curve(row)) is not None]
    if not curves:
        return None
    figure = canvas(4.6)
    ax = figure.subplots()
    colours = Colours(rows)
    few = len(curves) <= LABELLED
    regular = [curve.loss for curve in curves if not curve.broke_off] or [curve.loss for curve in curves]
    low, high = min(loss.min() for loss in regular), max(np.quantile(loss, 0.98) for loss in regular)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    top = high + 2 * margin
    for curve in curves:
        style: dict[str, Any] = {"lw": 1.8 if few else 1.1, "alpha": 0.95 if few else 0.7}
        style |= {"color": colours.of(curve.row), "marker": "o" if len(curve.tokens) == 1 else None}
        ax.plot(curve.tokens, curve.loss, zorder=4 if curve.row.trains_base else 3, **style)
        if curve.broke_off:
            ax.plot(*curve.end(top), "X", color="#c0392b", ms=8, mec="white", zorder=5, clip_on=False)
    ax.set_ylim(low - margin, top)
    ax.set_xlim(0, max(curve.tokens[-1] for curve in curves))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameters(value)))
    ax.set_xlabel("training tokens (without padding)")
    ax.set_ylabel("training loss")
    if few:
        end_labels(figure, ax, _label_early_ends(ax, curves, rows, colours, top))
    else:
        colour_legend(ax, colours)
    return Picture("training-loss", "Training loss against tokens", _caption(curves, top), png(figure))


def _curve(row: Row) -> Curve | None:
    points = [(record.tokens, record.figure("train/loss")) for record in row.records]
    tokens, loss = np.array(points, float).reshape(-1, 2).T  # NaN where a record has no loss
    tokens, loss = tokens[np.isfinite(loss)], loss[np.isfinite(loss)]
    if not len(loss):
        return None
    width = len(loss) // SMOOTHED_PART
    if width > 1:
        loss = np.array([loss[max(0, i - width) : i + 1].mean() for i in range(len(loss))])
    return Curve(row, tokens, loss, smoothed=width > 1)


def _label_early_ends(ax: Axes, curves: list[Curve], rows: list[Row], colours: Colours, top: float) -> list[EndLabel]:
    """Labels the runs that stopped early where they stopped. Returns the labels of the others."""
    texts = labels([Configuration((), (curve.row,), 0) for curve in curves], rows)
    with_seed, with_lr = len({row.seed for row in rows}) > 1, several_lrs(rows)
    longest = max(curve.tokens[-1] for curve in curves)
    ends = []
    for text, curve in zip(texts, curves, strict=True):
        row, colour = curve.row, colours.of(curve.row)
        text += (f" seed {row.seed}" if with_seed else "") + (f" lr {row.lr:g}" if with_lr and row.lr else "")
        text += f" init seed {row.overrides['init_seed']}" if "init_seed" in row.overrides else ""
        if curve.tokens[-1] == longest or len(curve.tokens) == 1:
            ends.append(EndLabel(curve.loss[-1], text, colour))
        else:
            ax.annotate(text, curve.end(top), (7, -3), textcoords="offset points", va="top", fontsize=9, color=colour)
    return ends


def _caption(curves: list[Curve], top: float) -> str:
    smoothed = any(curve.smoothed for curve in curves)
    caption = "One line per run" + (", smoothed over the last fortieth of its records." if smoothed else ".")
    if any(curve.broke_off for curve in curves):
        caption += " A red cross is where a run diverged or failed."
    if any(curve.loss.max() > top for curve in curves):
        caption += " The highest values are cut off."
    return caption
