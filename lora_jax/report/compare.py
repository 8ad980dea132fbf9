"""Compares rows: seeds as mean and spread, each configuration at its best learning rate, the finding in a sentence."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lora_jax.records.inputs import data_key, inputs_key, validates_on_test
from lora_jax.report.differences import gap
from lora_jax.report.rows import Row, extra_axes, readable
from lora_jax.report.text import short
from lora_jax.statistics import SeedScores

BASELINE = "full fine-tuning"  # what every finding compares with: rows whose method trains the base


@dataclass(frozen=True, eq=False)
class Configuration:
    """The finished runs of one configuration, which differ in nothing but their seed."""

    key: tuple[Any, ...]  # the learning rate last
    rows: tuple[Row, ...]
    missing: int  # seeds that did not finish

    @property
    def row(self) -> Row:
        """Any of its runs, for what they share."""
        return self.rows[0]

    @property
    def without_lr(self) -> tuple[Any, ...]:
        """The key of the same configuration at any learning rate."""
        return self.key[:-1]

    def mean(self, figure: Callable[[Row], float | None]) -> float | None:
        values = self.values(figure)
        return SeedScores.of(values).mean if values else None

    def std(self, figure: Callable[[Row], float | None]) -> float | None:
        """Returns the sample standard deviation over seeds (n - 1); None for fewer than two."""
        values = self.values(figure)
        return SeedScores.of(values).std if values else None

    def values(self, figure: Callable[[Row], float | None]) -> list[float]:
        return [value for value in map(figure, self.rows) if value is not None]


def headline_split(rows: Iterable[Row]) -> str:
    """Returns "test" if any finished row has a test figure, else "valid"."""
    return "test" if any(row.finished and row.score("test") is not None for row in rows) else "valid"


def split_name(split: str) -> str:
    return "test" if split == "test" else "best validation"


def configurations(rows: list[Row]) -> list[Configuration]:
    """Returns `rows` grouped over seeds, in the order of `rows`. What has no finished run is left out."""
    extra = extra_axes(rows)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((*_key(row, extra), row.lr), []).append(row)
    return [
        Configuration(key, tuple(finished), len(group) - len(finished))
        for key, group in groups.items()
        if (finished := [row for row in group if row.finished])
    ]


def at_best_lr(rows: list[Row]) -> list[Configuration]:
    """Returns `configurations`, each only at the learning rate that does best on validation, on average.

    The test metric decides only where there is no validation figure. A learning rate at which a seed did not finish is
    chosen only if there is no other: a mean over the runs that finished flatters it.
    """
    best: dict[tuple[Any, ...], Configuration] = {}
    for configuration in configurations(rows):
        key = configuration.without_lr
        if key not in best or _quality(configuration) > _quality(best[key]):
            best[key] = configuration
    return list(best.values())


def baseline_by_run(rows: list[Row]) -> dict[str, Configuration]:
    """Returns the baseline at its best learning rate for each run, by name, that it can be compared to."""
    baselines: dict[str, Configuration] = {}
    for group in comparable(rows).values():
        candidates = [configuration for configuration in at_best_lr(group) if configuration.row.trains_base]
        if candidates and conflict(group) is None:
            baselines |= {row.name: _nearest(candidates, row, group) for row in group}
    return baselines


def several_lrs(rows: list[Row]) -> bool:
    """Returns whether some configuration was tried at several learning rates."""
    extra = extra_axes(rows)
    return len({(*_key(row, extra), row.lr) for row in rows}) > len({_key(row, extra) for row in rows})


def comparable(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns `rows` by what can be compared: the same model and task. Keys are titles such as "minilm · banking77".

    Unreadable runs are left out.

    A run of version 1 that is not over may not say its model and task. Where all others have the same, it is taken to
    have them too.
    """
    rows = readable(rows)
    titles = [" · ".join(map(short, filter(None, (row.model, row.task)))) or "runs" for row in rows]
    certain = {title for title, row in zip(titles, rows, strict=True) if row.metric is not None}
    groups: dict[str, list[Row]] = {}
    for title, row in zip(titles, rows, strict=True):
        groups.setdefault(min(certain) if len(certain) == 1 else title, []).append(row)
    return groups


def labels(chosen: list[Configuration], rows: list[Row], *, targets: bool = False) -> list[str]:
    """Returns short labels that tell `chosen` apart, without seed and learning rate.

    The method, alpha, other axes and (unless `targets`) the targets are in them only where they are needed.
    """
    targets = targets or len({row.targets for row in rows} - {None}) > 1
    several_methods = len({row.method for row in rows if row.rank is not None}) > 1
    alphas = {configuration.row.alpha for configuration in chosen if configuration.row.rank is not None}
    ratios = {c.row.alpha / c.row.rank for c in chosen if c.row.alpha and c.row.rank}
    with_alpha = len(alphas) > 1 and len(ratios) > 1
    extra = extra_axes(rows)

    def label(row: Row) -> str:
        if row.trains_base:
            parts = [row.method_title]
        else:
            parts = [row.method_title] if row.rank is None or several_methods else []
            parts += [f"rank {row.rank}"] if row.rank is not None else []
            parts += [f"(targets {row.targets})"] if targets and row.targets else []
        parts += [f"alpha {row.alpha:g}"] if with_alpha and row.alpha is not None else []
        return short(" ".join(parts + [f"{key}={row.overrides[key]}" for key in extra if key in row.overrides]))

    return [label(configuration.row) for configuration in chosen]


def number(value: float) -> str:
    """Formats a metric: 0.873, 69.57."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def share(value: float) -> str:
    """Formats a share of parameters: 1.62%, 0.041%."""
    return f"{100 * value:.3g}%" if value < 1 else f"{100 * value:.0f}%"


def finding(rows: list[Row]) -> str:
    """Returns a sentence or two on the result, for each model and task."""
    groups = comparable(rows)
    sentences = [
        _finding(group) if len(groups) == 1 else f"{title}: {_finding(group)}" for title, group in groups.items()
    ]
    if chosen := [row.name for row in readable(rows) if row.finished and validates_on_test(row.run.config)]:
        whose = "each run" if len(chosen) == len(rows) else _few(chosen)
        sentences.append(
            f"With task.validation=test, the best evaluation of {whose} was chosen on the test split, so test scores "
            f"are optimistic."
        )
    if lost := len(rows) - len(readable(rows)):
        what = "No run" if lost == len(rows) else f"{lost} of {len(rows)} runs"
        sentences.append(f"{what} can be read." if lost == len(rows) else f"{what} cannot be read.")
    return " ".join(sentences)


def conflict(rows: list[Row]) -> str | None:
    """Returns why `rows` cannot be ranked: runs with the same settings had different bases or data. None: they can."""
    inputs: list[tuple[str, Callable[[Row], tuple[Any, ...]], Callable[[Row], str | None]]] = [
        ("base", lambda row: inputs_key(row.run.config), lambda row: row.run.base.fingerprint),
        ("data", lambda row: data_key(row.run.config), lambda row: row.run.data.fingerprint),
    ]
    for kind, key, fingerprint in inputs:
        names: dict[tuple[Any, ...], dict[str, list[str]]] = {}
        for row in readable(rows):
            if (value := fingerprint(row)) is not None:
                names.setdefault(key(row), {}).setdefault(value, []).append(row.name)
        for by_fingerprint in names.values():
            if len(by_fingerprint) > 1:
                parts = [f"{_few(runs)} had {value[:12]}" for value, runs in by_fingerprint.items()]
                return f"These runs cannot be ranked, because their {kind} changed between them: {', '.join(parts)}."
    return None


def conflicts(rows: list[Row]) -> list[str]:
    """Returns the `conflict` of each group of comparable rows that has one."""
    return [why for group in comparable(rows).values() if (why := conflict(group)) is not None]


def headline_metric(rows: Iterable[Row]) -> str:
    return next((row.metric for row in rows if row.metric), "metric")


def unfinished(rows: list[Row]) -> str:
    """Returns "2 failed, 1 diverged", or nothing."""
    counts = {status: sum(row.status == status for row in rows) for status in sorted({row.status for row in rows})}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if status != "finished")


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _finding(rows: list[Row]) -> str:
    metric, split = headline_metric(rows), headline_split(rows)
    chosen = [c for c in at_best_lr(rows) if c.mean(lambda row: row.score(split)) is not None]
    if (why := conflict(rows)) is not None:
        return why
    if not any(row.finished for row in rows):
        return f"No run has finished: {unfinished(rows)}."
    if not chosen:
        return "The finished runs have no test and no validation figure, so there is nothing to compare."
    baselines = [configuration for configuration in chosen if configuration.row.trains_base]
    others = [configuration for configuration in chosen if not configuration.row.trains_base]
    not_finished = f" Not finished: {unfinished(rows)}." if unfinished(rows) else ""
    if not others:
        return f"Only {BASELINE} has finished: it {_reaches(baselines[0], split, metric)}.{not_finished}"
    best, text = _best(others, rows, split, metric)
    if not baselines:
        return f"{text}; {_why_no_baseline(rows)}.{not_finished}"
    baseline = _nearest(baselines, best.row, rows)
    difference = gap(best.rows, baseline.rows, split)
    reaches = _reaches(baseline, split, metric, difference.clause() if difference else "")
    return f"{text}; {BASELINE} {reaches}.{not_finished}"


def _nearest(baselines: list[Configuration], row: Row, rows: list[Row]) -> Configuration:
    """Returns the first of `baselines` that agrees with `row` in the most axes that have no column of their own."""
    extra = extra_axes(rows)
    return max(baselines, key=lambda c: sum(c.row.overrides.get(key) == row.overrides.get(key) for key in extra))


def _best(others: list[Configuration], rows: list[Row], split: str, metric: str) -> tuple[Configuration, str]:
    """Returns the best of `others`, the one with the fewest parameters among equals, and a clause about it."""
    top = max(_quality(configuration)[1] for configuration in others)
    tied = [configuration for configuration in others if _quality(configuration)[1] == top]
    best = min(tied, key=lambda configuration: configuration.row.trainable or float("inf"))
    by_valid = split == "test" and all(c.mean(lambda row: row.quality()) is not None for c in others)
    if len(others) == 1:
        opening = capitalised(_name(best, others, rows))
    else:
        opening = f"Best{' on validation' if by_valid else ''}: {_name(best, others, rows)}"
    text = f"{opening} {_reaches(best, split, metric)}"
    if best.row.trainable_share is not None:
        text += f" with {share(best.row.trainable_share)} of the parameters trained"
    if len(tied) > 1:
        names = ", ".join(_name(configuration, others, rows) for configuration in tied if configuration is not best)
        text += f" (tied with {names}{'; fewest parameters named first' if best.row.trainable else ''})"
    return best, text


def _why_no_baseline(rows: list[Row]) -> str:
    baseline = [row for row in rows if row.trains_base]
    if not baseline:
        return f"there is no {BASELINE} to compare it with"
    if any(row.finished for row in baseline):
        return f"{BASELINE} has no such figure to compare it with"
    return f"{BASELINE} has not finished, so there is nothing to compare it with"


def _reaches(configuration: Configuration, split: str, metric: str, remark: str = "") -> str:
    mean = configuration.mean(lambda row: row.score(split))
    assert mean is not None
    seeds = len(configuration.rows)
    remarks = "; ".join(filter(None, [f"mean of {seeds} seeds" if seeds > 1 else "", remark]))
    return f"reaches {number(mean)} {split_name(split)} {metric}" + (f" ({remarks})" if remarks else "")


def _name(configuration: Configuration, others: list[Configuration], rows: list[Row]) -> str:
    text = labels(others, rows, targets=True)[others.index(configuration)]
    rate = configuration.row.lr
    return text + (f" at learning rate {rate:g}" if rate is not None and several_lrs(rows) else "")


def _few(names: list[str]) -> str:
    return ", ".join(map(short, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _key(row: Row, extra: list[str]) -> tuple[Any, ...]:
    axes = row.model, row.task, row.method, row.rank, row.alpha, row.targets
    return (*axes, *(row.overrides.get(key) for key in extra))


def _quality(configuration: Configuration) -> tuple[bool, float]:
    for figure in (lambda row: row.quality(), lambda row: row.score("test")):
        if (mean := configuration.mean(figure)) is not None:
            return configuration.missing == 0, mean
    return False, float("-inf")
