"""The charts of a sweep, each as a PNG with a caption. Drawn with matplotlib's objects, without pyplot's state.

A chart is a function from the rows of one model and task to a Picture, or to None where they have nothing for it to
draw, and a row in CHARTS.
"""

from collections.abc import Callable
from dataclasses import replace

import matplotlib as mpl

from lora_jax.report.charts.costs import costs
from lora_jax.report.charts.learning_rate import quality_by_lr
from lora_jax.report.charts.loss import training_loss
from lora_jax.report.charts.parameters import quality_by_parameters
from lora_jax.report.charts.quality import quality
from lora_jax.report.charts.style import STYLE
from lora_jax.report.compare import comparable, conflict
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row

# In the order of the page.
CHARTS: tuple[Callable[[list[Row]], Picture | None], ...] = (
    quality,
    quality_by_lr,
    training_loss,
    quality_by_parameters,
    costs,
)


def draw_charts(rows: list[Row]) -> list[Picture]:
    """Returns every chart that `rows` have something for, by model and task; none if no run has logged anything."""
    groups = comparable(rows)
    pictures = []
    for index, (title, group) in enumerate(groups.items()):
        for chart in CHARTS if conflict(group) is None else (training_loss,):
            with mpl.rc_context(STYLE):
                picture = chart(group)
            if picture is not None and len(groups) > 1:
                picture = replace(picture, name=f"{picture.name}-{index}", title=f"{title}: {picture.title}")
            pictures += [picture] if picture is not None else []
    return pictures
