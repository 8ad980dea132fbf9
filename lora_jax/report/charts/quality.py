"""The headline metric against rank, or by configuration where there is only one rank."""

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lora_jax.report.charts.labels import EndLabel, end_labels
from lora_jax.report.charts.series import Score, lines_over_rank, notes, score_of
from lora_jax.report.charts.style import BASELINE, GREY, LINES, MARKERS, Colours, canvas, png
from lora_jax.report.compare import Configuration, at_best_lr, capitalised, labels, number
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row


def quality(rows: list[Row]) -> Picture | None:
    score = score_of(rows)
    drawn = score.scored(at_best_lr(rows))
    if len(drawn) < 2:  # a single figure stands in the finding
        return None
    ranks = sorted({configuration.row.rank for configuration in drawn if configuration.row.rank is not None})
    return _by_configuration(rows, drawn, score) if len(ranks) < 2 else _by_rank(rows, drawn, score, ranks)


def _by_rank(rows: list[Row], drawn: list[Configuration], score: Score, ranks: list[int]) -> Picture:
    figure = canvas(4.6)
    ax = figure.subplots()
    ends = []
    for index, (title, line) in enumerate(lines_over_rank(drawn, rows).items()):
        colour = LINES[index % len(LINES)]
        x = np.array([configuration.row.rank for configuration in line], float)
        y = score.means(line)
        spread = np.array([score.std(configuration) for configuration in line])
        ax.plot(x, y, marker=MARKERS[index % 8], color=colour, lw=1.8, ms=6, mec="white", zorder=3)
        if spread.any():
            ax.fill_between(x, y - spread, y + spread, color=colour, alpha=0.13, lw=0)
        ends.append(EndLabel(y[-1], title, colour))
    for index, configuration in enumerate(c for c in drawn if c.row.rank is None):
        is_baseline = configuration.row.trains_base
        colour = BASELINE if is_baseline else GREY
        mean, std = score.mean(configuration), score.std(configuration)
        ax.axhline(mean, color=colour, lw=1.5, ls="--" if is_baseline else (0, (2, 1 + index)), zorder=2)
        if std:
            ax.axhspan(mean - std, mean + std, color=colour, alpha=0.08, lw=0)
        ends.append(EndLabel(mean, labels([configuration], rows)[0], colour))
    ax.set_xscale("log", base=2)
    ax.set_xlim(ranks[0] / 2**0.2, ranks[-1] * 2**0.08)
    ax.xaxis.set_major_locator(FixedLocator(ranks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("rank (log scale)")
    ax.set_ylabel(score.name)
    end_labels(figure, ax, ends)
    title = f"{capitalised(score.name)} against rank"
    return Picture("quality-by-rank", title, notes(rows, drawn), png(figure))


def _by_configuration(rows: list[Row], drawn: list[Configuration], score: Score) -> Picture:
    colours = Colours(rows)
    figure = canvas(1.1 + 0.36 * max(len(drawn), 2))
    ax = figure.subplots()
    upwards = list(reversed(drawn))
    for y, configuration in enumerate(upwards):
        mean, std = score.mean(configuration), score.std(configuration)
        colour = colours.of(configuration.row)
        ax.errorbar(mean, y, xerr=std or None, fmt="o", ms=8, color=colour, capsize=3, lw=1.6)
        place = (mean + std, y)
        ax.annotate(number(mean), place, (9, 0), textcoords="offset points", va="center", fontsize=9, color=colour)
    baseline = next((score.mean(configuration) for configuration in drawn if configuration.row.trains_base), None)
    if baseline is not None:
        ax.axvline(baseline, color=BASELINE, lw=1.2, ls="--", zorder=1)
    ax.set_yticks(range(len(upwards)), labels(upwards, rows))
    ax.set_ylim(-0.6, len(upwards) - 0.3)
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(score.name)
    return Picture("quality", f"{capitalised(score.name)} by configuration", notes(rows, drawn), png(figure))
