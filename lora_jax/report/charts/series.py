"""What charts draw: scores of configurations, and the lines that they make over rank."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from lora_jax.report.compare import Configuration, headline_metric, headline_split, labels, several_lrs, split_name
from lora_jax.report.rows import Row


@dataclass(frozen=True)
class Score:
    """The headline metric of some rows: on the test set, or on validation where no run has a test figure."""

    split: str
    name: str  # "test accuracy"

    def of(self, row: Row) -> float | None:
        return row.score(self.split)

    def mean(self, configuration: Configuration) -> float:
        """Returns the mean over seeds of a configuration that has the figure."""
        mean = configuration.mean(self.of)
        assert mean is not None
        return mean

    def std(self, configuration: Configuration) -> float:
        """Returns the standard deviation over seeds; 0 where there is one seed."""
        return configuration.std(self.of) or 0.0

    def means(self, line: Iterable[Configuration]) -> np.ndarray:
        return np.array([configuration.mean(self.of) for configuration in line], float)

    def scored(self, configurations: Iterable[Configuration]) -> list[Configuration]:
        """Returns those of `configurations` that have the figure."""
        return [configuration for configuration in configurations if configuration.mean(self.of) is not None]


def score_of(rows: list[Row]) -> Score:
    split = headline_split(rows)
    return Score(split, f"{split_name(split)} {headline_metric(rows)}")


def lines_over_rank(configurations: Iterable[Configuration], rows: list[Row]) -> dict[str, list[Configuration]]:
    """Returns the configurations that have a rank as lines over it, by label.

    Where alpha follows rank, lines are separated by the ratio of the two.
    """
    ranked = [configuration for configuration in configurations if configuration.row.rank is not None]
    alphas = {configuration.row.alpha for configuration in ranked}
    ratios = {c.row.alpha / c.row.rank for c in ranked if c.row.alpha and c.row.rank}
    by_ratio = len(ratios) < len(alphas)
    with_alpha = len(ratios if by_ratio else alphas) > 1
    plain = labels([_unranked(configuration) for configuration in ranked], [_without_rank(row) for row in rows])
    lines: dict[str, list[Configuration]] = {}
    for text, configuration in zip(plain, ranked, strict=True):
        row = configuration.row
        if with_alpha and row.alpha is not None and row.rank:
            text += f", alpha = {row.alpha / row.rank:g}r" if by_ratio else f", alpha = {row.alpha:g}"
        lines.setdefault(text, []).append(configuration)
    return {text: sorted(line, key=lambda configuration: configuration.row.rank or 0) for text, line in lines.items()}


def has_spread(configurations: Iterable[Configuration]) -> bool:
    return any(len(configuration.rows) > 1 for configuration in configurations)


def notes(rows: list[Row], drawn: list[Configuration], *, spread: bool = True) -> str:
    """Returns what a caption says of seeds and learning rates; `spread`: the chart has bands or bars."""
    sentences = []
    if has_spread(drawn):
        sentences.append("Means over seeds" + ("; the bands and bars are one standard deviation." if spread else "."))
    if several_lrs(rows):
        metric = headline_metric(rows)
        selected = next((row for row in rows if row.quality() is not None), None)
        by = f"validation {selected.select or metric}" if selected else f"test {metric}"
        sentences.append(f"Each configuration is shown at its own best learning rate, by mean {by}.")
    return " ".join(sentences)


def _without_rank(row: Row) -> Row:
    return row.model_copy(update={"rank": None, "alpha": None})


def _unranked(configuration: Configuration) -> Configuration:
    return replace(configuration, rows=tuple(map(_without_rank, configuration.rows)))
