"""The headline metric against the learning rate, where several were tried."""

from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lora_jax.report.charts.labels import EndLabel, are_apart, end_labels
from lora_jax.report.charts.series import has_spread, score_of
from lora_jax.report.charts.style import MARKERS, Colours, canvas, colour_legend, png
from lora_jax.report.compare import Configuration, capitalised, configurations, labels, several_lrs
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row


def quality_by_lr(rows: list[Row]) -> Picture | None:
    if not several_lrs(rows):
        return None
    score = score_of(rows)
    drawn = [configuration for configuration in score.scored(configurations(rows)) if configuration.row.lr]
    lines: dict[tuple[Any, ...], list[Configuration]] = {}
    for configuration in drawn:
        lines.setdefault(configuration.without_lr, []).append(configuration)
    if not lines:
        return None
    figure = canvas(4.6)
    ax = figure.subplots()
    colours, ends = Colours(rows), []
    names = labels([line[0] for line in lines.values()], rows)
    families = list(dict.fromkeys((line[0].row.targets, line[0].row.alpha) for line in lines.values()))
    for title, line in zip(names, lines.values(), strict=True):
        line = sorted(line, key=lambda configuration: configuration.row.lr or 0)
        x, y = np.array([configuration.row.lr for configuration in line], float), score.means(line)
        marker = MARKERS[families.index((line[0].row.targets, line[0].row.alpha)) % 8]
        colour = colours.of(line[0].row)
        ax.errorbar(x, y, yerr=list(map(score.std, line)), color=colour, marker=marker, ms=5.5, lw=1.6, mec="white")
        ends.append(EndLabel(y[-1], title, colour))
    ax.set_xscale("log")
    learning_rates = sorted({configuration.row.lr for configuration in drawn if configuration.row.lr})
    if len(learning_rates) <= 10 and are_apart(learning_rates, 0.12):
        ax.xaxis.set_major_locator(FixedLocator(learning_rates))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("learning rate (log scale)")
    ax.set_ylabel(score.name)
    if len(ends) <= 12:
        end_labels(figure, ax, ends)
    else:
        colour_legend(ax, colours)
    caption = "Each configuration at every learning rate that finished" + (
        "; error bars are one standard deviation over seeds." if has_spread(drawn) else "."
    )
    return Picture("quality-by-lr", f"{capitalised(score.name)} against learning rate", caption, png(figure))
