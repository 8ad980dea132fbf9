"""One table, three ways: CSV with every number as it is, Markdown and the terminal for people."""

import csv
import io
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lora_jax.report.compare import headline_split, number, points, settings, share, split_name
from lora_jax.report.rows import Row, axes

UNKNOWN = "\u2013"


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    always: bool = False  # shown even if all rows agree


@dataclass(frozen=True)
class Text:
    """A table of formatted text, and a caption of what all its rows share."""

    titles: list[str]
    lines: list[list[str]]
    caption: str


def headline(rows: list[Row]) -> Text:
    """A line per run; what is the same for all is in the caption."""
    columns, same = [], []
    for column in _columns(rows):
        values = [column.value(row) for row in rows]
        if all(value is None for value in values) and column.title != "status":
            continue
        known = [value for value in values if value is not None]
        if not column.always and len(set(map(repr, known))) == 1:
            same.append(f"{column.title} {column.text(known[0])}")
        else:
            columns.append(column)
    lines = [[_cell(column, row) for column in columns] for row in rows]
    return Text(
        [column.title for column in columns], lines, f"The same wherever it applies: {', '.join(same)}." if same else ""
    )


def over_seeds(rows: list[Row]) -> Text | None:
    """A line per configuration with mean ± sample standard deviation (n seeds); None unless there are several seeds."""
    found = points(rows)
    if all(len(point.rows) + point.missing == 1 for point in found):
        return None
    split, metric = headline_split(rows), _metric(rows)
    figures: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
        (f"{split_name(split)} {metric}", lambda row: row.score(split), number),
        ("test loss", _test_loss, lambda value: f"{value:.3f}"),
        ("tokens/s", lambda row: row.tokens_per_s, lambda value: f"{value:,.0f}"),
    ]
    figures = [figure for figure in figures if any(point.values(figure[1]) for point in found)]
    naming = [column for column in _axis_columns(rows) if column.title != "seed"]
    naming = [c for c in naming if c.title == "method" or len({repr(c.value(p.row)) for p in found} - {"None"}) > 1]
    lines = []
    for point in found:
        line = [_cell(column, point.row) for column in naming]
        for _, of, text in figures:
            mean, std = point.mean(of), point.std(of)
            line.append(UNKNOWN if mean is None else text(mean) + (f" ± {text(std)}" if std is not None else ""))
        lost = f" ({point.missing} not finished)" if point.missing else ""
        lines.append([*line, f"{len(point.rows)}{lost}"])
    titles = [*(column.title for column in naming), *(title for title, _, _ in figures), "n"]
    return Text(titles, lines, "Mean ± sample standard deviation over n seeds.")


def markdown(rows: list[Row]) -> str:
    """table.md: the table of runs and, with several seeds, the one over seeds."""
    parts = [_markdown(headline(rows))]
    if why := reasons(rows):
        parts.append("".join(f"- {_plain(reason)}\n" for reason in why))
    if (aggregated := over_seeds(rows)) is not None:
        parts.append(_markdown(aggregated))
    return "\n".join(parts)


def reasons(rows: list[Row]) -> list[str]:
    """What went wrong, one short line for each run that says so; table.csv has the whole of it."""
    return [
        f"{row.name} {row.status}: {textwrap.shorten(row.error, 160, placeholder=' …')}" for row in rows if row.error
    ]


def raw_csv(rows: list[Row]) -> str:
    """table.csv: every axis and every figure at full precision; an unknown one is an empty cell."""
    plain = ["name", "status", "error", "model", "task", "method", "rank", "alpha", "targets", "lr", "seed"]
    figures = ["steps", "trainable", "adapter_parameters", "head_parameters", "base_parameters", "trainable_share"]
    costs = ["train_loss", "tokens", "seconds", "tokens_per_s", "compile_seconds", "peak_memory_bytes", "adapter_bytes"]
    extra = axes(rows)
    scores = {
        part: sorted({key for row in rows for key in getattr(row, part) or {}}) for part in ("test", "valid_best")
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [f"{part}/{key}" for part, keys in scores.items() for key in keys]
    writer.writerow([*plain, *extra, *figures, "metric", *titles, *costs, "pack", "pack_runs"])
    for row in rows:
        scored = [(getattr(row, part) or {}).get(key) for part, keys in scores.items() for key in keys]
        pack = row.pack or {}
        writer.writerow(
            [
                *(getattr(row, key) for key in plain),
                *(row.asked.get(key) for key in extra),
                *(getattr(row, key) for key in figures),
                row.metric,
                *scored,
                *(getattr(row, key) for key in costs),
                pack.get("index"),
                pack.get("runs"),
            ]
        )
    return out.getvalue()


def terminal_table(rows: list[Row]) -> Table:
    """The table of runs for the terminal; print it with rich. Names are left out where the columns tell runs apart."""
    text = headline(rows)
    told = [[_cell(column, row) for column in _axis_columns(rows)] for row in rows]
    first = 1 if len(set(map(tuple, told))) == len(rows) else 0
    caption = escape("\n".join(filter(None, [text.caption, *reasons(rows)])))
    table = Table(
        box=box.SIMPLE_HEAD, caption=caption or None, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for place, title in list(enumerate(text.titles))[first:]:
        words = title in ("name", "method", "targets", "status")
        # Lines break between words, never within one.
        width = max(len(word) for cell in (title, *(line[place] for line in text.lines)) for word in cell.split())
        table.add_column(escape(title), justify="left" if words else "right", min_width=width)
    colours = {"failed": "red", "diverged": "red", "running": "cyan", "interrupted": "yellow"}
    for row, line in zip(rows, text.lines, strict=True):
        table.add_row(*map(escape, line[first:]), style=colours.get(row.status))
    return table


def parameters(value: float) -> str:
    """391k, 1.24M, 22.7M, 8.03B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """45.1 MiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """9.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _columns(rows: list[Row]) -> list[Column]:
    split = headline_split(rows)
    return [
        Column("name", lambda row: row.name, always=True),
        *_axis_columns(rows),
        Column(f"{split_name(split)} {_metric(rows)}", lambda row: row.score(split), number, always=True),
        Column("test loss", _test_loss, lambda value: f"{value:.3f}", always=True),
        Column("trainable", lambda row: row.trainable, parameters, always=True),
        Column("share", lambda row: row.trainable_share, share, always=True),
        Column("tokens/s", lambda row: row.tokens_per_s, lambda value: f"{value:,.0f}", always=True),
        Column("peak memory", lambda row: row.peak_memory_bytes, size, always=True),
        Column("adapter", lambda row: row.adapter_bytes, size, always=True),
        Column("status", lambda row: row.status, always=True),
    ]


def _axis_columns(rows: list[Row]) -> list[Column]:
    extra = [Column(key, lambda row, key=key: row.asked.get(key)) for key in axes(rows)]  # type: ignore[misc]
    several = len(settings(rows)) > 1
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
    ]


def _metric(rows: list[Row]) -> str:
    names = {row.metric for row in rows if row.metric}
    return names.pop() if len(names) == 1 else "metric"


def _test_loss(row: Row) -> float | None:
    return (row.test or {}).get("loss")


def _cell(column: Column, row: Row) -> str:
    value = column.value(row)
    if value is None:
        return UNKNOWN
    return "NaN" if isinstance(value, float) and math.isnan(value) else column.text(value)


def _markdown(table: Text) -> str:
    def line(cells: list[str]) -> str:
        return "|" + "|".join(_plain(cell).replace("|", "\\|") for cell in cells) + "|"

    rule = "|" + "|".join("-" for _ in table.titles) + "|"
    caption = f"\n{_plain(table.caption)}\n" if table.caption else ""
    return "\n".join([line(table.titles), rule, *map(line, table.lines)]) + "\n" + caption


def _plain(text: str) -> str:
    """`text` on one line, with nothing that Markdown takes for HTML."""
    return text.replace("\n", " ").replace("<", "&lt;")
