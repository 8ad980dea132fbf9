"""The headline metric against the number of trainable parameters."""

from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lora_jax.report.charts.labels import PointLabel, point_labels
from lora_jax.report.charts.series import lines_over_rank, notes, score_of
from lora_jax.report.charts.style import GREY, MARKERS, Colours, canvas, legend_beside, png
from lora_jax.report.compare import at_best_lr, capitalised, labels
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row
from lora_jax.report.tables import parameters


def quality_by_parameters(rows: list[Row]) -> Picture | None:
    score = score_of(rows)
    drawn = [configuration for configuration in score.scored(at_best_lr(rows)) if configuration.row.trainable]
    if len(drawn) < 2:
        return None
    figure = canvas(4.6)
    ax = figure.subplots()
    colours = Colours(rows)
    lines = lines_over_rank(drawn, rows)
    marker_of: dict[int, str] = {}
    for index, (title, line) in enumerate(lines.items()):
        marker = MARKERS[index % 8]
        marker_of |= {id(configuration): marker for configuration in line}
        ax.plot([c.row.trainable or 0 for c in line], score.means(line), color="#cccccc", lw=1.2, zorder=1)
        if len(lines) > 1:
            ax.plot([], [], marker, color=GREY, ms=6, label=title)
    points = []
    for configuration in drawn:
        row, std = configuration.row, configuration.std(score.of)
        x, y, colour = row.trainable or 0, score.mean(configuration), colours.of(row)
        marker, size = (marker_of[id(configuration)], 7) if id(configuration) in marker_of else ("*", 11)
        ax.errorbar(x, y, yerr=std, fmt=marker, ms=size, color=colour, mec="white", capsize=2, lw=1.2, zorder=3)
        text = f"r={row.rank}" if row.rank is not None else labels([configuration], rows)[0]
        points.append(PointLabel(x, y, std or 0.0, text, colour))
    ax.set_xscale("log")
    fewest, most = min(point.x for point in points), max(point.x for point in points)
    ax.set_xlim(fewest / 1.6, most * 2.2)
    ax.margins(y=0.14)
    if most / fewest < 10:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameters(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("trainable parameters, head included (log scale)")
    ax.set_ylabel(score.name)
    if len(lines) > 1:
        legend_beside(ax)
    points.sort(key=lambda point: point.text.startswith("r="))  # what no colour of a rank tells apart comes first
    point_labels(figure, ax, points)
    title = f"{capitalised(score.name)} against trainable parameters"
    return Picture("quality-by-parameters", title, notes(rows, drawn), png(figure))
