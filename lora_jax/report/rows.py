"""The runs of a sweep as rows, from their run.json and summary.json."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, InstanceOf

from lora_jax.errors import UserError, shown
from lora_jax.metrics import better
from lora_jax.records import (
    RUN_FILE,
    SUMMARY_FILE,
    Axes,
    MetricsRecord,
    Results,
    RunRecord,
    Status,
    Summary,
    find_runs,
    is_open,
    read_metrics,
    read_run,
    read_summary,
)
from lora_jax.records.outcomes import OUTCOMES_FILE, Outcomes, read_outcomes
from lora_jax.report.text import visible

_NO_METHOD = "?"  # of a run whose records do not say it


class Row(Results):
    """One run. Its results are summary.json's; of a run without one, those that are known by now.

    `status` is summary.json's, or else "running" when a process is writing to the run now and "interrupted" when none
    is. It is "unreadable" where a file of the run cannot be read. Nothing but its name and the error is known then.
    """

    status: Status | Literal["running", "interrupted", "unreadable"]
    folder: Path
    run: RunRecord = Field(repr=False)
    records: tuple[MetricsRecord, ...] = Field((), repr=False)  # metrics.jsonl
    overrides: Mapping[str, str]  # {"rank": "8"}
    outcomes: InstanceOf[Outcomes] | None = Field(None, repr=False)  # outcomes.npz

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def readable(self) -> bool:
        return self.status != "unreadable"

    def quality(self) -> float | None:
        """Returns the validation figure that chooses between runs, its sign such that more is better."""
        value = self.selection_score()
        return None if value is None else _sign(self.select or self.metric or "") * value


def load_rows(sweep: Path) -> list[Row]:
    """Returns the runs in `sweep`, or the one run that `sweep` is: full fine-tuning last, then unreadable runs.

    Runs of the same name, such as those of two sweeps in one folder, differ in the override "folder".

    Raises:
      UserError: there is no run in `sweep`.
    """
    sweep = Path(sweep)
    return sorted(_told_apart([_row(folder, sweep) for folder in find_runs(sweep)], sweep), key=_order)


def readable(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.readable]


def extra_axes(rows: list[Row]) -> list[str]:
    """Returns the overrides in which `rows` differ, beyond those that every table has a column for."""
    columns = {"method", "rank", "alpha", "targets", "lr", "seed", "init_seed", "model", "task"}
    rows = readable(rows)
    keys = sorted({key for row in rows for key in row.overrides if key.rsplit(".", 1)[-1] not in columns})
    return [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]


def _row(folder: Path, sweep: Path) -> Row:
    try:
        run, summary = read_run(folder), read_summary(folder)
        records = tuple(read_metrics(folder, summary))
        if summary is not None:
            _check_same_run(run, summary, folder)
        outcomes = None if summary is None else read_outcomes(folder)
        if summary is not None and outcomes is not None:
            _check_same_scores(summary, outcomes, folder)
    except UserError as error:
        return _unreadable(folder, sweep, str(error))
    run = RunRecord.model_validate(visible(run.model_dump()))
    summary = None if summary is None else Summary.model_validate(visible(summary.model_dump()))
    overrides = dict(text.lstrip("+").split("=", 1) for text in run.overrides if "=" in text)
    known: dict[str, Any] = {"folder": folder, "run": run, "records": records, "overrides": overrides}
    if summary is not None:
        results = {name: getattr(summary, name) for name in Results.model_fields}
        return Row(**results, **known, status=summary.status, outcomes=outcomes)
    return Row(
        **{name: getattr(run.axes, name) for name in Axes.model_fields},
        **known,
        name=run.name,
        status="running" if is_open(folder) else "interrupted",
        steps=records[-1].step if records else None,
        tokens=records[-1].tokens if records else None,
    )


def _check_same_run(run: RunRecord, summary: Summary, folder: Path) -> None:
    there = {"name": run.name} | dict(run.axes)
    for field in ("name", "model", "task", "method", "rank", "alpha", "targets", "lr", "seed"):
        value, other = getattr(summary, field), there[field]
        if value != other and None not in (value, other) and _NO_METHOD not in (value, other):
            raise UserError(
                f"{folder / SUMMARY_FILE} is of another run than {RUN_FILE}: its {field} is {shown(value)}, "
                f"the other's is {shown(other)}"
            )


def _check_same_scores(summary: Summary, outcomes: Outcomes, folder: Path) -> None:
    for name, values in outcomes.per_example.items():
        recorded = (summary.test or {}).get(name)
        mean = float(values.mean(dtype=np.float64))
        # Values are kept in single precision.
        if recorded is not None and math.isfinite(recorded) and not math.isclose(mean, recorded, rel_tol=1e-5):
            raise UserError(
                f"{folder / OUTCOMES_FILE} is of another run than {SUMMARY_FILE}: its {name} is {mean:.6g}, the "
                f"other's is {recorded:.6g}"
            )


def _unreadable(folder: Path, sweep: Path, error: str) -> Row:
    name = _place(folder, sweep)
    axes: dict[str, Any] = {"method": _NO_METHOD, "method_title": _NO_METHOD, "trains_base": False}
    return Row(
        **axes,
        name=name,
        status="unreadable",
        error=visible(error.replace(f"{folder}/", "")),
        folder=folder,
        run=RunRecord(name=name, axes=Axes(**axes), start_time=None),
        overrides={},
    )


def _told_apart(rows: list[Row], sweep: Path) -> list[Row]:
    names = Counter(row.name for row in rows)
    if max(names.values()) == 1:
        return rows
    parents = Counter((row.name, row.folder.parent) for row in rows)
    apart = max(parents.values()) == 1  # by the sweeps that they lie in
    places = [_place(row.folder.parent if apart else row.folder, sweep) for row in rows]
    return [
        row.replace(
            name=row.name if names[row.name] == 1 else _place(row.folder, sweep),
            overrides={**row.overrides, "folder": place},
        )
        for row, place in zip(rows, places, strict=True)
    ]


def _place(folder: Path, sweep: Path) -> str:
    return str(visible(folder.name if folder == sweep else folder.relative_to(sweep).as_posix()))


def _sign(metric: str) -> int:
    return 1 if better(metric, 1.0, 0.0) else -1


def _order(row: Row) -> tuple[Any, ...]:
    """Methods with a rank come first, full fine-tuning last."""
    targets = row.targets or ""
    numbers = [(value is None, value or 0) for value in (row.rank, row.alpha, row.lr, row.seed)]
    return (
        not row.readable,
        row.model or "",
        row.task or "",
        row.trains_base,
        row.rank is None,
        row.method,
        targets == "all",
        len(targets),
        targets,
        *numbers,
        row.name,
    )
