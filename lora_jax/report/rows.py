"""The runs of a sweep as rows, from their run.json and summary.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lora_jax.metrics import better
from lora_jax.records import Axes, Results, RunRecord, Status, find_runs, is_open, read_metrics, read_run, read_summary


class Row(Results):
    """One run. Its results are summary.json's; of a run without one, those that are known by now.

    `status` is summary.json's, or else "running" when a process is writing to the run now and "interrupted" when none
    is.
    """

    status: Status | Literal["running", "interrupted"]
    folder: Path
    run: RunRecord = Field(repr=False)
    overrides: Mapping[str, str]  # {"rank": "8"}

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def quality(self) -> float | None:
        """Returns the validation figure that chooses between runs, its sign such that more is better."""
        value = self.selection_score()
        return None if value is None else _sign(self.select or self.metric or "") * value


def load_rows(sweep: Path) -> list[Row]:
    """Returns the runs in `sweep`, or the one run that `sweep` is: full fine-tuning last.

    Raises:
      UserError: there is no run in `sweep`, or one of its files cannot be read.
    """
    sweep = Path(sweep)
    return sorted((_row(folder) for folder in find_runs(sweep)), key=_order)


def extra_axes(rows: list[Row]) -> list[str]:
    """Returns the overrides in which `rows` differ, beyond those that every table has a column for."""
    columns = {"method", "rank", "alpha", "targets", "lr", "seed", "model", "task"}
    keys = sorted({key for row in rows for key in row.overrides if key.rsplit(".", 1)[-1] not in columns})
    return [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def _row(folder: Path) -> Row:
    run, summary = read_run(folder), read_summary(folder)
    overrides = dict(text.lstrip("+").split("=", 1) for text in run.overrides if "=" in text)
    if summary is not None:
        results = {name: getattr(summary, name) for name in Results.model_fields}
        return Row(**results, status=summary.status, folder=folder, run=run, overrides=overrides)
    axes = {name: getattr(run.axes, name) for name in Axes.model_fields}
    records = read_metrics(folder)
    return Row(
        **axes,
        name=run.name,
        status="running" if is_open(folder) else "interrupted",
        steps=records[-1].step if records else None,
        tokens=records[-1].tokens if records else None,
        folder=folder,
        run=run,
        overrides=overrides,
    )


def _sign(metric: str) -> int:
    return 1 if better(metric, 1.0, 0.0) else -1


def _order(row: Row) -> tuple[Any, ...]:
    """Methods with a rank come first, full fine-tuning last."""
    targets = row.targets or ""
    numbers = [(value is None, value or 0) for value in (row.rank, row.alpha, row.lr, row.seed)]
    return (
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
