"""What rows say together: seeds as mean and spread, each configuration at its own best learning rate, the finding."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lora_jax.report.rows import Row, axes


@dataclass(frozen=True)
class Point:
    """The finished runs of one configuration, which differ in nothing but their seed."""

    key: tuple[Any, ...]
    rows: tuple[Row, ...]
    missing: int  # seeds that did not finish

    @property
    def row(self) -> Row:
        return self.rows[0]

    def mean(self, of: Callable[[Row], float | None]) -> float | None:
        values = self.values(of)
        return statistics.fmean(values) if values else None

    def std(self, of: Callable[[Row], float | None]) -> float | None:
        """The sample standard deviation over seeds (n - 1); None for fewer than two."""
        values = self.values(of)
        return statistics.stdev(values) if len(values) > 1 else None

    def values(self, of: Callable[[Row], float | None]) -> list[float]:
        return [value for value in map(of, self.rows) if value is not None]


def headline_split(rows: Iterable[Row]) -> str:
    """ "test" if any finished row has a test figure, else "valid"."""
    return "test" if any(row.finished and row.score("test") is not None for row in rows) else "valid"


def split_name(split: str) -> str:
    return "test" if split == "test" else "best validation"


def points(rows: list[Row]) -> list[Point]:
    """`rows` with seeds put together, in the order of `rows`; configurations of which no run finished are left out."""
    extra = axes(rows)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((*_configuration(row, extra), row.lr), []).append(row)
    return [
        Point(key, tuple(done), len(group) - len(done))
        for key, group in groups.items()
        if (done := [row for row in group if row.finished])
    ]


def at_best_lr(rows: list[Row]) -> list[Point]:
    """`points`, of each configuration only the learning rate that does best on validation, on average.

    The test metric decides only where there is no validation figure. A learning rate at which a seed was lost is taken
    only if there is no other: a mean over the survivors flatters it.
    """
    best: dict[tuple[Any, ...], Point] = {}
    for point in points(rows):
        key = point.key[:-1]
        if key not in best or _quality(point) > _quality(best[key]):
            best[key] = point
    return list(best.values())


def several_lrs(rows: list[Row]) -> bool:
    """Whether some configuration was tried at several learning rates."""
    extra = axes(rows)
    return len({(*_configuration(row, extra), row.lr) for row in rows}) > len(
        {_configuration(row, extra) for row in rows}
    )


def settings(rows: list[Row]) -> dict[str, list[Row]]:
    """`rows` by what can be compared: the same model and task. Keys are titles such as "minilm · banking77".

    A run that is not over may not say what it is of: where all others are of one kind, it is taken for that.
    """
    titles = [" · ".join(filter(None, (row.model, row.task))) or "runs" for row in rows]
    known = {title for title, row in zip(titles, rows, strict=True) if row.metric is not None}
    found: dict[str, list[Row]] = {}
    for title, row in zip(titles, rows, strict=True):
        found.setdefault(min(known) if len(known) == 1 else title, []).append(row)
    return found


def label(row: Row, *, targets: bool = True) -> str:
    """A configuration in words, without its seed and learning rate."""
    if row.method == "full":
        return "full fine-tuning"
    parts = [f"rank {row.rank}"] if row.rank is not None else []
    if row.method != "lora" or not parts:
        parts.insert(0, {"lora": "LoRA"}.get(row.method, row.method))
    return " ".join(parts) + (f" (targets {row.targets})" if targets and row.targets else "")


def labels(found: list[Point], rows: list[Row], *, targets: bool = False) -> list[str]:
    """Short labels that tell `found` apart. Alpha, other axes and (unless asked for) targets are in them if needed."""
    targets = targets or len({row.targets for row in rows} - {None}) > 1
    extra, plain = axes(rows), [label(point.row, targets=targets) for point in found]
    alphas = {point.row.alpha for point in found if point.row.rank is not None}
    ratios = {point.row.alpha / point.row.rank for point in found if point.row.alpha and point.row.rank}
    out = []
    for text, point in zip(plain, found, strict=True):
        if len(alphas) > 1 and len(ratios) > 1 and point.row.alpha is not None:
            text += f" alpha {point.row.alpha:g}"
        out.append(text + "".join(f" {key}={point.row.asked[key]}" for key in extra if key in point.row.asked))
    return out


def number(value: float) -> str:
    """A metric, 0.873 or 69.57."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def share(value: float) -> str:
    """A share of parameters: 1.62%, 0.041%."""
    return f"{100 * value:.3g}%" if value < 1 else f"{100 * value:.0f}%"


def finding(rows: list[Row]) -> str:
    """One sentence or two on what came out, true for any rows; one per model and task, if there are several."""
    found = settings(rows)
    sentences = [
        _finding(group) if len(found) == 1 else f"{title}: {_finding(group)}" for title, group in found.items()
    ]
    return " ".join(sentences)


def unfinished(rows: list[Row]) -> str:
    """ "2 failed, 1 diverged", or nothing."""
    counts = {status: sum(row.status == status for row in rows) for status in sorted({row.status for row in rows})}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if status != "finished")


def _finding(rows: list[Row]) -> str:
    metric = next((row.metric for row in rows if row.metric), "metric")
    split = headline_split(rows)
    found = [point for point in at_best_lr(rows) if point.mean(lambda row: row.score(split)) is not None]
    if not any(row.finished for row in rows):
        return f"No run has finished: {unfinished(rows)}."
    if not found:
        return "The finished runs have no test and no validation figure, so there is nothing to compare."
    full = next((point for point in found if point.row.method == "full"), None)
    others = [point for point in found if point.row.method != "full"]
    lost = f" Not finished: {unfinished(rows)}." if unfinished(rows) else ""
    if not others:
        assert full is not None
        return f"Only full fine-tuning has finished: it {_reaches(full, split, metric)}.{lost}"
    top = max(_quality(point)[1] for point in others)
    tied = [point for point in others if _quality(point)[1] == top]
    best = min(tied, key=lambda point: point.row.trainable or float("inf"))
    by_valid = split == "test" and all(point.mean(lambda row: row.choice()) is not None for point in others)
    if len(others) == 1:
        opening = f"{_capital(_name(best, others, rows))}"
    else:
        opening = f"Best{' on validation' if by_valid else ''}: {_name(best, others, rows)}"
    text = f"{opening} {_reaches(best, split, metric)}"
    if best.row.trainable_share is not None:
        text += f" with {share(best.row.trainable_share)} of the parameters trained"
    if len(tied) > 1:
        same = ", ".join(_name(point, others, rows) for point in tied if point is not best)
        text += f" (tied with {same}{'; fewest parameters named first' if best.row.trainable else ''})"
    if full is None:
        baseline = [row for row in rows if row.method == "full"]
        if not baseline:
            why = "there is no full fine-tuning to compare it with"
        elif any(row.finished for row in baseline):
            why = "full fine-tuning has no such figure to compare it with"
        else:
            why = "full fine-tuning has not finished, so there is nothing to compare it with"
        return f"{text}; {why}.{lost}"
    theirs = _reaches(full, split, metric, _difference(full, best, split))
    return f"{text}; full fine-tuning {theirs}.{lost}"


def _reaches(point: Point, split: str, metric: str, remark: str = "") -> str:
    mean = point.mean(lambda row: row.score(split))
    assert mean is not None
    remarks = "; ".join(filter(None, [f"mean of {len(point.rows)} seeds" if len(point.rows) > 1 else "", remark]))
    return f"reaches {number(mean)} {split_name(split)} {metric}" + (f" ({remarks})" if remarks else "")


def _difference(full: Point, best: Point, split: str) -> str:
    def score(row: Row) -> float | None:
        return row.score(split)

    mine, theirs = best.mean(score), full.mean(score)
    assert mine is not None and theirs is not None
    scale = 100 if max(abs(mine), abs(theirs)) <= 1 else 1
    gap = scale * (theirs - mine)
    if gap == 0:
        return "the same"
    size = f"{abs(gap):.1f} points" if abs(gap) >= 0.05 else "less than 0.1 points"
    text = f"{size} {'higher' if gap > 0 else 'lower'}"
    spreads = [best.std(score), full.std(score)]
    known = [spread for spread in spreads if spread is not None]
    if len(known) == 2 and abs(gap) < scale * max(known):
        text += ", within the spread of the seeds"
    elif not known:
        text += ", one seed each"
    return text


def _name(point: Point, others: list[Point], rows: list[Row]) -> str:
    text = labels(others, rows, targets=True)[others.index(point)]
    return text + (f" at learning rate {point.row.lr:g}" if point.row.lr is not None and several_lrs(rows) else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _configuration(row: Row, extra: list[str]) -> tuple[Any, ...]:
    return (row.model, row.task, row.method, row.rank, row.alpha, row.targets, *(row.asked.get(key) for key in extra))


def _quality(point: Point) -> tuple[bool, float]:
    for of in (lambda row: row.choice(), lambda row: row.score("test")):
        if (mean := point.mean(of)) is not None:
            return point.missing == 0, mean
    return False, float("-inf")
