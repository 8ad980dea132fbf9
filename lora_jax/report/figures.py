"""The figures of a sweep, each as a PNG with a caption. Drawn with matplotlib's objects, without pyplot's state."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lora_jax.report.compare import (
    Point,
    at_best_lr,
    headline_split,
    labels,
    points,
    settings,
    several_lrs,
    split_name,
)
from lora_jax.report.drawing import (
    FULL,
    GREY,
    LINES,
    MARKERS,
    STYLE,
    Colours,
    canvas,
    end_labels,
    legend,
    png,
    point_labels,
    room,
)
from lora_jax.report.rows import Row
from lora_jax.report.tables import UNKNOWN, duration, number, parameters, size
from lora_jax.track import read_metrics


@dataclass(frozen=True)
class Picture:
    name: str  # the file's, without .png
    title: str
    caption: str
    png: bytes


def pictures(rows: list[Row]) -> list[Picture]:
    """Every figure that `rows` have something to show in; none if no run has logged anything."""
    groups, made = settings(rows), []
    for index, (title, group) in enumerate(groups.items()):
        for draw in (_quality, _against_lr, _loss, _against_parameters, _costs):
            with mpl.rc_context(STYLE):
                picture = draw(group)
            if picture is not None and len(groups) > 1:
                picture = replace(picture, name=f"{picture.name}-{index}", title=f"{title}: {picture.title}")
            made += [picture] if picture is not None else []
    return made


def _quality(rows: list[Row]) -> Picture | None:
    """The metric against rank, or by configuration where there is only one rank."""
    of, name = _score(rows)
    found = [point for point in at_best_lr(rows) if point.mean(of) is not None]
    ranks = sorted({point.row.rank for point in found if point.row.rank is not None})
    if len(found) < 2:  # one figure is better said than drawn
        return None
    notes = _notes(rows, found)
    if len(ranks) < 2:
        return _by_configuration(rows, found, of, name, notes)
    lines = _lines([point for point in found if point.row.rank is not None], rows)
    figure = canvas(4.6)
    ax = figure.subplots()
    ends = []
    for index, (title, line) in enumerate(lines.items()):
        colour = LINES[index % len(LINES)]
        x = np.array([point.row.rank for point in line], float)
        y = _means(line, of)
        spread = np.array([point.std(of) or 0.0 for point in line])
        ax.plot(x, y, marker=MARKERS[index % 8], color=colour, lw=1.8, ms=6, mec="white", zorder=3)
        if spread.any():
            ax.fill_between(x, y - spread, y + spread, color=colour, alpha=0.13, lw=0)
        ends.append((y[-1], title, colour))
    for index, point in enumerate(p for p in found if p.row.rank is None):
        full = point.row.method == "full"
        colour = FULL if full else GREY
        mean, std = point.mean(of), point.std(of)
        assert mean is not None
        ax.axhline(mean, color=colour, lw=1.5, ls="--" if full else (0, (2, 1 + index)), zorder=2)
        if std:
            ax.axhspan(mean - std, mean + std, color=colour, alpha=0.08, lw=0)
        ends.append((mean, labels([point], rows)[0], colour))
    ax.set_xscale("log", base=2)
    ax.set_xlim(ranks[0] / 2**0.2, ranks[-1] * 2**0.08)
    ax.xaxis.set_major_locator(FixedLocator(ranks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("rank (log scale)")
    ax.set_ylabel(name)
    end_labels(figure, ax, ends)
    return Picture("quality-by-rank", f"{_capital(name)} against rank", notes, png(figure))


def _by_configuration(rows: list[Row], found: list[Point], of: Any, name: str, notes: str) -> Picture:
    colours = Colours(rows)
    figure = canvas(1.1 + 0.36 * max(len(found), 2))
    ax = figure.subplots()
    shown = list(reversed(found))
    for y, point in enumerate(shown):
        mean = point.mean(of)
        assert mean is not None
        colour = colours.of(point.row)
        ax.errorbar(mean, y, xerr=point.std(of) or None, fmt="o", ms=8, color=colour, capsize=3, lw=1.6)
        right = mean + (point.std(of) or 0.0)
        ax.annotate(number(mean), (right, y), (9, 0), textcoords="offset points", va="center", fontsize=9, color=colour)
    full = next((point.mean(of) for point in found if point.row.method == "full"), None)
    if full is not None:
        ax.axvline(full, color=FULL, lw=1.2, ls="--", zorder=1)
    ax.set_yticks(range(len(shown)), labels(shown, rows))
    ax.set_ylim(-0.6, len(shown) - 0.3)
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(name)
    return Picture("quality", f"{_capital(name)} by configuration", notes, png(figure))


def _against_lr(rows: list[Row]) -> Picture | None:
    if not several_lrs(rows):
        return None
    of, name = _score(rows)
    found = [point for point in points(rows) if point.mean(of) is not None and point.row.lr]
    lines: dict[tuple[Any, ...], list[Point]] = {}
    for point in found:
        lines.setdefault(point.key[:-1], []).append(point)
    if not lines:
        return None
    figure = canvas(4.6)
    ax = figure.subplots()
    colours, ends = Colours(rows), []
    names = labels([line[0] for line in lines.values()], rows)
    families = list(dict.fromkeys((line[0].row.targets, line[0].row.alpha) for line in lines.values()))
    for title, line in zip(names, lines.values(), strict=True):
        line = sorted(line, key=lambda point: point.row.lr or 0)
        x, y = np.array([point.row.lr for point in line], float), _means(line, of)
        marker = MARKERS[families.index((line[0].row.targets, line[0].row.alpha)) % 8]
        colour = colours.of(line[0].row)
        ax.errorbar(
            x, y, yerr=[point.std(of) or 0 for point in line], color=colour, marker=marker, ms=5.5, lw=1.6, mec="white"
        )
        ends.append((x[-1], y[-1], title, colour))
    ax.set_xscale("log")
    rates = sorted({point.row.lr for point in found if point.row.lr})
    if len(rates) <= 10 and room(rates, 0.12):
        ax.xaxis.set_major_locator(FixedLocator(rates))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("learning rate (log scale)")
    ax.set_ylabel(name)
    if len(ends) <= 12:
        end_labels(figure, ax, [(y, title, colour) for _, y, title, colour in ends])
    else:
        legend(ax, colours)
    caption = "Each configuration at every learning rate that finished" + (
        "; error bars are one standard deviation over seeds." if _has_spread(found) else "."
    )
    return Picture("quality-by-lr", f"{_capital(name)} against learning rate", caption, png(figure))


def _loss(rows: list[Row]) -> Picture | None:
    curves, smoothed = [], False
    for row in rows:
        records = [record for record in read_metrics(row.folder) if record.get("train/loss") is not None]
        x = np.array([record["tokens"] for record in records], float)
        y = np.array([record["train/loss"] for record in records], float)
        keep = np.isfinite(y)
        if keep.any():
            x, y, wide = x[keep], y[keep], len(y[keep]) // 40
            if wide > 1:
                smoothed = True
                y = np.array([y[max(0, i - wide) : i + 1].mean() for i in range(len(y))])
            curves.append((row, x, y))
    if not curves:
        return None
    figure = canvas(4.6)
    ax = figure.subplots()
    colours = Colours(rows)
    few = len(curves) <= 10
    good = [y for row, _, y in curves if row.status not in ("diverged", "failed")] or [y for _, _, y in curves]
    low, high = min(y.min() for y in good), max(np.quantile(y, 0.98) for y in good)
    room_around = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    top, longest = high + 2 * room_around, max(x[-1] for _, x, _ in curves)
    clipped = any(y.max() > top for _, _, y in curves)
    for row, x, y in curves:
        style: dict[str, Any] = {"color": colours.of(row), "lw": 1.8 if few else 1.1, "alpha": 0.95 if few else 0.7}
        ax.plot(x, y, zorder=4 if row.method == "full" else 3, **style, marker="o" if len(x) == 1 else None)
        if row.status in ("diverged", "failed"):
            last = int(np.argmax(y > top)) if (y > top).any() else -1  # where it leaves the axes, or stops
            ax.plot(x[last], min(y[last], top), "X", color="#c0392b", ms=8, mec="white", zorder=5, clip_on=False)
    ax.set_ylim(low - room_around, top)
    ax.set_xlim(0, longest)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameters(value)))
    ax.set_xlabel("training tokens (without padding)")
    ax.set_ylabel("training loss")
    if few:
        shown = labels([Point((), (row,), 0) for row, _, _ in curves], rows)
        several = len({row.seed for row in rows}) > 1, several_lrs(rows)
        at_end = []
        for text, (row, x, y) in zip(shown, curves, strict=True):
            text += (f" seed {row.seed}" if several[0] else "") + (f" lr {row.lr:g}" if several[1] and row.lr else "")
            if x[-1] == longest or len(x) == 1:
                at_end.append((y[-1], text, colours.of(row)))
            else:  # a run that stopped early is named where it stopped
                last = int(np.argmax(y > top)) if (y > top).any() else -1
                place = (x[last], min(y[last], top))
                ax.annotate(
                    text, place, (7, -3), textcoords="offset points", va="top", fontsize=9, color=colours.of(row)
                )
        end_labels(figure, ax, at_end)
    else:
        legend(ax, colours)
    caption = "One line per run" + (", smoothed over the last fortieth of its records." if smoothed else ".")
    if any(row.status in ("diverged", "failed") for row, _, _ in curves):
        caption += " A red cross is where a run diverged or failed."
    if clipped:
        caption += " The highest values are cut off."
    return Picture("training-loss", "Training loss against tokens", caption, png(figure))


def _against_parameters(rows: list[Row]) -> Picture | None:
    of, name = _score(rows)
    found = [point for point in at_best_lr(rows) if point.mean(of) is not None and point.row.trainable]
    if len(found) < 2:
        return None
    figure = canvas(4.6)
    ax = figure.subplots()
    colours = Colours(rows)
    lines = _lines([point for point in found if point.row.rank is not None], rows)
    marker_of: dict[int, str] = {}
    for index, (title, line) in enumerate(lines.items()):
        marker_of |= {id(point): MARKERS[index % 8] for point in line}
        ax.plot([point.row.trainable or 0 for point in line], _means(line, of), color="#cccccc", lw=1.2, zorder=1)
        if len(lines) > 1:
            ax.plot([], [], MARKERS[index % 8], color=GREY, ms=6, label=title)
    taken: list[tuple[float, float, float, str, str]] = []
    for point in found:
        x, y, std = point.row.trainable, point.mean(of), point.std(of)
        assert x is not None and y is not None
        colour = colours.of(point.row)
        ax.errorbar(
            x,
            y,
            yerr=std,
            fmt=marker_of.get(id(point), "*"),
            ms=11 if id(point) not in marker_of else 7,
            color=colour,
            mec="white",
            capsize=2,
            lw=1.2,
            zorder=3,
        )
        text = f"r={point.row.rank}" if point.row.rank is not None else labels([point], rows)[0]
        taken.append((x, y, std or 0.0, text, colour))
    ax.set_xscale("log")
    x_all = [point[0] for point in taken]
    ax.set_xlim(min(x_all) / 1.6, max(x_all) * 2.2)
    ax.margins(y=0.14)
    if max(x_all) / min(x_all) < 10:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameters(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("trainable parameters, head included (log scale)")
    ax.set_ylabel(name)
    if len(lines) > 1:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    taken.sort(key=lambda label: label[3].startswith("r="))  # what has no rank's colour to tell it by comes first
    point_labels(figure, ax, taken)
    return Picture(
        "quality-by-parameters", f"{_capital(name)} against trainable parameters", _notes(rows, found), png(figure)
    )


def _costs(rows: list[Row]) -> Picture | None:
    found = at_best_lr(rows)
    panels: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
        ("peak memory", lambda row: row.peak_memory_bytes, size),
        ("training time", lambda row: row.seconds, duration),
        ("adapter on disk", lambda row: row.adapter_bytes, size),
    ]
    panels = [panel for panel in panels if any(point.values(panel[1]) for point in found)]
    if not panels or len(found) < 2:
        return None
    shown, colours = list(reversed(found)), Colours(rows)
    figure = canvas(0.9 + 0.3 * max(len(shown), 2))
    all_axes: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, of, text) in zip(all_axes, panels, strict=True):
        values = [point.mean(of) for point in shown]
        top = max(value for value in values if value is not None) or 1.0
        for y, (point, value) in enumerate(zip(shown, values, strict=True)):
            if value is not None:
                ax.barh(y, value, height=0.66, color=colours.of(point.row))
            ax.text((value or 0) + 0.02 * top, y, UNKNOWN if value is None else text(value), va="center", fontsize=8.5)
        ax.set_xlim(0, top * 1.5)
        ax.set_title(title, fontsize=10, loc="left")
        ax.grid(False)
        ax.spines[["bottom", "left"]].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks([])
    all_axes[0].set_yticks(range(len(shown)), labels(shown, rows))
    all_axes[0].set_ylim(-0.6, len(shown) - 0.4)
    caption = "Lower is better. " + _notes(rows, found, spread=False)
    if any((row.pack or {}).get("runs", 1) > 1 for point in found for row in point.rows):
        caption += " Runs that were packed together share one process: memory and time are their whole pack's."
    return Picture("costs", "Memory, time and bytes", caption.strip(), png(figure))


def _lines(found: list[Point], rows: list[Row]) -> dict[str, list[Point]]:
    """`found` as lines over rank, by label. Where alpha follows rank, lines are told apart by alpha's ratio to it."""
    alphas = {point.row.alpha for point in found}
    ratios = {point.row.alpha / point.row.rank for point in found if point.row.alpha and point.row.rank}
    by_ratio = len(ratios) < len(alphas)
    shown = len(ratios if by_ratio else alphas) > 1
    plain = labels([_without_alpha(point) for point in found], [_without_rank(row) for row in rows])
    lines: dict[str, list[Point]] = {}
    for text, point in zip(plain, found, strict=True):
        if shown and point.row.alpha is not None and point.row.rank:
            text += f", alpha = {point.row.alpha / point.row.rank:g}r" if by_ratio else f", alpha = {point.row.alpha:g}"
        lines.setdefault(text, []).append(point)
    return {text: sorted(line, key=lambda point: point.row.rank or 0) for text, line in lines.items()}


def _without_rank(row: Row) -> Row:
    return replace(row, rank=None, alpha=None)


def _without_alpha(point: Point) -> Point:
    return replace(point, rows=tuple(map(_without_rank, point.rows)))


def _score(rows: list[Row]) -> tuple[Callable[[Row], float | None], str]:
    split = headline_split(rows)
    metric = next((row.metric for row in rows if row.metric), "metric")
    return (lambda row: row.score(split)), f"{split_name(split)} {metric}"


def _means(found: list[Point], of: Callable[[Row], float | None]) -> np.ndarray:
    return np.array([point.mean(of) for point in found], float)


def _has_spread(found: Iterable[Point]) -> bool:
    return any(len(point.rows) > 1 for point in found)


def _notes(rows: list[Row], found: list[Point], *, spread: bool = True) -> str:
    notes = []
    if _has_spread(found):
        notes.append("Means over seeds" + ("; the bands and bars are one standard deviation." if spread else "."))
    if several_lrs(rows):
        chosen = next((row for row in rows if row.choice() is not None), None)
        metric = next((row.metric for row in rows if row.metric), "metric")
        by = f"validation {chosen.select or metric}" if chosen else f"test {metric}"
        notes.append(f"Each configuration is shown at its own best learning rate, by mean {by}.")
    return " ".join(notes)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
