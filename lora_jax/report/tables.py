"""The table of runs in three forms: CSV at full precision, Markdown and the terminal rounded."""

import csv
import io
import math
import operator
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text as PlainText

from lora_jax.report.compare import (
    BASELINE,
    Configuration,
    baseline_by_run,
    capitalised,
    comparable,
    configurations,
    conflicts,
    headline_split,
    number,
    share,
    split_name,
)
from lora_jax.report.differences import Gap, gap, standard_error_of
from lora_jax.report.rows import Row, extra_axes
from lora_jax.report.text import short
from lora_jax.statistics import Difference

UNKNOWN = "\u2013"
VERSUS = f"vs {BASELINE}"
STANDARD_ERROR = "standard error"


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    always: bool = False  # has a column even if all rows agree


@dataclass(frozen=True)
class Text:
    """A table of formatted text, and a caption that says what all its rows share."""

    titles: list[str]
    lines: list[list[str]]
    caption: str


def headline(rows: list[Row]) -> Text:
    """Returns a line per run. What is the same for all is in the caption."""
    columns, same = [], []
    for column in _columns(rows):
        values = [column.value(row) for row in rows]
        if all(value is None for value in values) and column.title != "status":
            continue
        present = [value for value in values if value is not None]
        if not column.always and len(set(map(repr, present))) == 1:
            same.append(f"{column.title} {short(column.text(present[0]))}")
        else:
            columns.append(column)
    lines = [[_cell(column, row) for column in columns] for row in rows]
    titles = [short(column.title) for column in columns]
    notes = [f"The same wherever it applies: {', '.join(same)}."] if same else []
    notes += (
        ["Standard error: of the test score, from the number of test examples."] if STANDARD_ERROR in titles else []
    )
    notes += [_versus_note("")] if VERSUS in titles else []
    return Text(titles, lines, " ".join(notes))


def over_seeds(rows: list[Row]) -> Text | None:
    """Returns a line per configuration with mean ± sample standard deviation; None unless there are several seeds."""
    groups = configurations(rows)
    if conflicts(rows) or all(len(group.rows) + group.missing == 1 for group in groups):
        return None
    split, metric = headline_split(rows), _metric(rows)
    figures: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
        (f"{split_name(split)} {metric}", lambda row: row.score(split), number),
        ("test loss", _test_loss, lambda value: f"{value:.3f}"),
        ("tokens/s", lambda row: row.tokens_per_s, lambda value: f"{value:,.0f}"),
    ]
    figures = [figure for figure in figures if any(group.values(figure[1]) for group in groups)]
    baselines = baseline_by_run(rows)
    gaps = [_gap_to(baselines.get(group.row.name), group.rows, split) for group in groups]
    versus = [VERSUS] if any(gaps) else []
    names = [column for column in _axis_columns(rows) if column.title not in ("seed", "init seed")]
    names = [c for c in names if c.title == "method" or len({repr(c.value(g.row)) for g in groups} - {"None"}) > 1]
    lines = []
    for group, difference in zip(groups, gaps, strict=True):
        line = [_cell(column, group.row) for column in names]
        for _, figure, text in figures:
            mean, std = group.mean(figure), group.std(figure)
            line.append(UNKNOWN if mean is None else text(mean) + (f" ± {text(std)}" if std is not None else ""))
        missing = f" ({group.missing} not finished)" if group.missing else ""
        line += [difference.cell() if difference else UNKNOWN] if versus else []
        lines.append([*line, f"{len(group.rows)}{missing}"])
    titles = [*(column.title for column in names), *(title for title, _, _ in figures), *versus, "n"]
    note = f" {_versus_note(', and over seeds where both have several')}" if versus else ""
    return Text(titles, lines, f"Mean ± sample standard deviation over n seeds.{note}")


def markdown(rows: list[Row]) -> str:
    """Returns table.md: the table of runs and, with several seeds, the one over seeds."""
    parts = [_markdown(headline(rows))]
    if why := [*conflicts(rows), *reasons(rows)]:
        parts.append("".join(f"- {_plain(reason)}\n" for reason in why))
    if (aggregated := over_seeds(rows)) is not None:
        parts.append(_markdown(aggregated))
    return "\n".join(parts)


def reasons(rows: list[Row]) -> list[str]:
    """Returns a short line for each run that failed, diverged or cannot be read. table.csv has the whole error."""
    return [
        f"{short(row.name)} {row.status}: {textwrap.shorten(row.error, 160, placeholder=' …')}"
        for row in rows
        if row.error
    ]


def raw_csv(rows: list[Row]) -> str:
    """Returns table.csv: every axis and every figure at full precision. What is not known is an empty cell."""
    axes = ["name", "status", "error", "model", "task", "method", "rank", "alpha", "targets", "lr", "seed"]
    sizes = ["steps", "trainable", "adapter_parameters", "head_parameters", "base_parameters", "trainable_share"]
    costs = ["train_loss", "tokens", "seconds", "tokens_per_s", "compile_seconds", "peak_memory_bytes", "adapter_bytes"]
    # Pairs and not a dictionary: an override that varies, such as steps, may be called like a figure.
    columns: list[tuple[str, Callable[[Row], Any]]] = [(key, operator.attrgetter(key)) for key in axes]
    initial = ["init_seed"] if any("init_seed" in row.overrides for row in rows) else []
    columns += [(key, _override(key)) for key in (*initial, *extra_axes(rows))]
    columns += [(key, operator.attrgetter(key)) for key in (*sizes, "metric")]
    for part in ("test", "valid_best"):
        names = sorted({name for row in rows for name in getattr(row, part) or {}})
        columns += [(f"{part}/{name}", _figure(part, name)) for name in names]
    columns += [("test_se", standard_error_of), *_difference_columns(rows)]
    columns += [(key, operator.attrgetter(key)) for key in costs]
    columns += [
        ("pack", lambda row: row.pack and row.pack.index),
        ("pack_runs", lambda row: row.pack and row.pack.runs),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_no_formula(title) for title, _ in columns)
    writer.writerows([_no_formula(value(row)) for _, value in columns] for row in rows)
    return text.getvalue()


def terminal_table(rows: list[Row]) -> Table:
    """Returns the table of runs for rich to print, without intervals, which take too much of a line.

    Names are left out where the axes tell the runs apart.
    """
    text = headline(rows)
    axes = {tuple(_cell(column, row) for column in _axis_columns(rows)) for row in rows}
    first = 1 if len(axes) == len(rows) else 0
    # No markup: rich would take "[red]" and ":x:" in a name for its own.
    caption = PlainText("\n".join(filter(None, [text.caption, *conflicts(rows), *reasons(rows)])))
    table = Table(
        box=box.SIMPLE_HEAD, caption=caption or None, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    shown = [place for place, title in enumerate(text.titles) if title not in (STANDARD_ERROR, VERSUS)][first:]
    for place in shown:
        title = text.titles[place]
        words = title in ("name", "method", "targets", "status")
        # Lines break between words, never within one.
        width = max(len(word) for cell in (title, *(line[place] for line in text.lines)) for word in cell.split())
        table.add_column(PlainText(title), justify="left" if words else "right", min_width=width)
    colours = {"failed": "red", "diverged": "red", "unreadable": "red", "running": "cyan", "interrupted": "yellow"}
    for row, line in zip(rows, text.lines, strict=True):
        table.add_row(*(PlainText(line[place]) for place in shown), style=colours.get(row.status))
    return table


def parameters(value: float) -> str:
    """Formats a count: 391k, 1.24M, 22.7M, 8.03B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Formats a number of bytes: 45.1 MiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Formats seconds: 9.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _columns(rows: list[Row]) -> list[Column]:
    split, baselines = headline_split(rows), baseline_by_run(rows)
    return [
        Column("name", lambda row: row.name, always=True),
        *_axis_columns(rows),
        Column(f"{split_name(split)} {_metric(rows)}", lambda row: row.score(split), number, always=True),
        Column(STANDARD_ERROR, standard_error_of, number, always=True),
        Column(VERSUS, lambda row: _gap_to(baselines.get(row.name), (row,), split), Gap.cell, always=True),
        Column("test loss", _test_loss, lambda value: f"{value:.3f}", always=True),
        Column("trainable", lambda row: row.trainable, parameters, always=True),
        Column("share", lambda row: row.trainable_share, share, always=True),
        Column("tokens/s", lambda row: row.tokens_per_s, lambda value: f"{value:,.0f}", always=True),
        Column("peak memory", lambda row: row.peak_memory_bytes, size, always=True),
        Column("adapter", lambda row: row.adapter_bytes, size, always=True),
        Column("status", lambda row: row.status, always=True),
    ]


def _gap_to(baseline: Configuration | None, runs: tuple[Row, ...], split: str) -> Gap | None:
    """Returns the difference of some runs to the baseline; None for runs of the baseline itself."""
    if baseline is None or runs[0].name in {row.name for row in baseline.rows}:
        return None
    return gap(runs, baseline.rows, split)


def _versus_note(seeds: str) -> str:
    return (
        f"{capitalised(VERSUS)}: the score minus that of {BASELINE} at its best learning rate, in points where scores "
        f"are at most 1. In brackets its 95% confidence interval over test examples{seeds}."
    )


def _difference_columns(rows: list[Row]) -> list[tuple[str, Callable[[Row], Any]]]:
    split, baselines = headline_split(rows), baseline_by_run(rows)
    gaps = {row.name: _gap_to(baselines.get(row.name), (row,), split) for row in rows}

    def column(title: str, value: Callable[[Difference], Any]) -> tuple[str, Callable[[Row], Any]]:
        def cell(row: Row) -> Any:
            to_baseline = gaps[row.name]
            return None if to_baseline is None or to_baseline.difference is None else value(to_baseline.difference)

        return title, cell

    return [
        ("difference", lambda row: to_baseline.value if (to_baseline := gaps[row.name]) else None),
        column("difference_low", lambda difference: difference.low),
        column("difference_high", lambda difference: difference.high),
        column("difference_p", lambda difference: difference.p),
        column("distinguishable", lambda difference: difference.distinguishable),
    ]


def _axis_columns(rows: list[Row]) -> list[Column]:
    extra = [Column(key, _override(key)) for key in extra_axes(rows)]
    several = len(comparable(rows)) > 1
    return [
        Column("model", lambda row: row.model, always=several),
        Column("task", lambda row: row.task, always=several),
        Column("method", lambda row: row.method, always=True),
        Column("rank", lambda row: row.rank, always=True),
        Column("alpha", lambda row: row.alpha, lambda value: f"{value:g}", always=True),
        Column("targets", lambda row: row.targets, always=True),
        *extra,
        Column("learning rate", lambda row: row.lr, lambda value: f"{value:.3g}", always=True),
        Column("seed", lambda row: row.seed),
        Column("init seed", _override("init_seed")),
    ]


def _metric(rows: list[Row]) -> str:
    names = {row.metric for row in rows if row.metric}
    return names.pop() if len(names) == 1 else "metric"


def _override(key: str) -> Callable[[Row], str | None]:
    return lambda row: row.overrides.get(key)


def _figure(part: str, name: str) -> Callable[[Row], float | None]:
    return lambda row: (getattr(row, part) or {}).get(name)


def _test_loss(row: Row) -> float | None:
    return (row.test or {}).get("loss")


def _cell(column: Column, row: Row) -> str:
    value = column.value(row)
    if value is None:
        return UNKNOWN
    return "NaN" if isinstance(value, float) and math.isnan(value) else short(column.text(value))


def _no_formula(cell: Any) -> Any:
    """Returns a cell of a CSV file. A quote keeps spreadsheets from computing a text that looks like a formula."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, with nothing in its cells that Markdown takes for HTML, a link or a cell's end."""
    rows = (titles, ["-"] * len(titles), *lines)
    return "".join(f"|{'|'.join(map(_plain, row))}|\n" for row in rows)


def _markdown(table: Text) -> str:
    caption = f"\n{_plain(table.caption)}\n" if table.caption else ""
    return markdown_table(table.titles, table.lines) + caption


def _plain(text: str) -> str:
    """Returns `text` on one line, with nothing that Markdown takes for HTML, a link or the end of a cell."""
    return text.replace("\n", " ").replace("<", "&lt;").replace("](", "]&#40;").replace("|", "&#124;")
