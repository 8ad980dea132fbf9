"""Memory, training time and bytes on disk of every configuration."""

from collections.abc import Callable
from typing import Any

from lora_jax.report.charts.series import notes
from lora_jax.report.charts.style import Colours, canvas, png
from lora_jax.report.compare import at_best_lr, labels
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row
from lora_jax.report.tables import UNKNOWN, duration, size


def costs(rows: list[Row]) -> Picture | None:
    drawn = at_best_lr(rows)
    panels: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
        ("peak memory", lambda row: row.peak_memory_bytes, size),
        ("training time", lambda row: row.seconds, duration),
        ("adapter on disk", lambda row: row.adapter_bytes, size),
    ]
    panels = [panel for panel in panels if any(configuration.values(panel[1]) for configuration in drawn)]
    if not panels or len(drawn) < 2:
        return None
    upwards, colours = list(reversed(drawn)), Colours(rows)
    figure = canvas(0.9 + 0.3 * max(len(upwards), 2))
    all_axes: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, cost, text) in zip(all_axes, panels, strict=True):
        values = [configuration.mean(cost) for configuration in upwards]
        top = max(value for value in values if value is not None) or 1.0
        for y, (configuration, value) in enumerate(zip(upwards, values, strict=True)):
            if value is not None:
                ax.barh(y, value, height=0.66, color=colours.of(configuration.row))
            ax.text((value or 0) + 0.02 * top, y, UNKNOWN if value is None else text(value), va="center", fontsize=8.5)
        ax.set_xlim(0, top * 1.5)
        ax.set_title(title, fontsize=10, loc="left")
        ax.grid(False)
        ax.spines[["bottom", "left"]].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks([])
    all_axes[0].set_yticks(range(len(upwards)), labels(upwards, rows))
    all_axes[0].set_ylim(-0.6, len(upwards) - 0.4)
    caption = "Lower is better. " + notes(rows, drawn, spread=False)
    if any(row.pack is not None and row.pack.runs > 1 for configuration in drawn for row in configuration.rows):
        caption += " Runs that were packed together share one process: memory and time are their whole pack's."
    return Picture("costs", "Memory, time and bytes", caption.strip(), png(figure))
