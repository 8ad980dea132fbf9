"""Compares the results of sweeps, and checks what a command has told."""

import csv
import json
from pathlib import Path
from typing import Any

from helpers.command_line import ROOT, records, runs

# Fields that depend on the clock and may differ, and hashes over them.
CLOCK = {"train/tokens_per_s", "seconds", "tokens_per_s", "compile_seconds", "sha256", "metrics_sha256", "crc32"}
# Folders whose files depend on Hydra or W&B, and not on the results.
FOREIGN = {".hydra", "wandb"}


def without_clock(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_clock(value) for key, value in tree.items() if key not in CLOCK}
    return [without_clock(value) for value in tree] if isinstance(tree, list) else tree


def difference(
    sweep: Path,
    expected: Path,
    *,
    only: set[str] | None = None,
    plan: bool = True,
    ignored: frozenset[str] = frozenset(),
) -> str | None:
    """Returns the first difference between the results of two sweeps, but for the clock; None if there is none.

    Args:
      sweep: the folder of a sweep.
      expected: the folder of another.
      only: the names of the runs to compare, by default all.
      plan: whether to compare the packs.
      ignored: fields of summary.json that may differ.
    """
    names = set(runs(expected)) if only is None else only
    if only is None and set(runs(sweep)) != names:
        return f"there are the runs {runs(sweep)}, expected {runs(expected)}"
    for name in sorted(names):
        one, other = sweep / name, expected / name
        for file in ("metrics.jsonl", "summary.json", "adapter/delta.safetensors"):
            if not (one / file).exists():
                return f"{name} has no {file}"
        try:
            figures, summary = without_clock(records(one)), _summary(one)
        except ValueError as error:
            return f"{name}: metrics.jsonl or summary.json is no JSON ({error})"
        if figures != without_clock(records(other)):
            return f"{name}: metrics.jsonl differs"
        if different := _different_fields(summary, _summary(other)) - ignored:
            return f"{name}: summary.json differs in {', '.join(sorted(different))}"
        if len({(run / "adapter/delta.safetensors").read_bytes() for run in (one, other)}) > 1:
            return f"{name}: delta.safetensors differs"
    plans = [json.loads((folder / "plan.json").read_text()) for folder in (sweep, expected)] if plan else [None, None]
    return "plan.json differs" if plans[0] != plans[1] else None


def finished_runs(sweep: Path) -> set[str]:
    """Returns the names of the runs in `sweep` whose summary says that they have finished."""
    return {
        name for name in runs(sweep) if (sweep / name / "summary.json").exists() and _status(sweep / name) == "finished"
    }


def statuses(sweep: Path) -> dict[str, str]:
    """Returns the status of every run that has a summary."""
    return {name: _status(sweep / name) for name in runs(sweep) if (sweep / name / "summary.json").exists()}


def stray_files(sweep: Path, expected: Path) -> list[str]:
    """Returns the files in `sweep` that `expected` does not have."""
    return sorted(_files(sweep) - _files(expected))


def report_files(sweep: Path) -> dict[str, bytes]:
    """Returns the content of every file of a sweep's report."""
    return {path.name: path.read_bytes() for path in (sweep / "report").iterdir()}


def table_rows(sweep: Path) -> dict[str, dict[str, str]]:
    """Returns the rows of ``report/table.csv`` by the name of the run."""
    with (sweep / "report/table.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def has_traceback(text: str) -> bool:
    """Returns whether `text` has a traceback, of Python or of a crash in native code."""
    return any(
        mark in text for mark in ("Traceback (most recent call last)", "Fatal Python error", "Segmentation fault")
    )


def has_own_frame(text: str) -> bool:
    """Returns whether a traceback in `text` has got as far as this repository's code."""
    return f'File "{ROOT}' in text


def error_lines(errors: str) -> list[str]:
    """Returns the lines that tell of an error of the user."""
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def _summary(run: Path) -> Any:
    return without_clock(json.loads((run / "summary.json").read_text()))


def _status(run: Path) -> str:
    try:
        return str(json.loads((run / "summary.json").read_text())["status"])
    except (ValueError, KeyError, TypeError):
        return "unreadable"


def _different_fields(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _files(sweep: Path) -> set[str]:
    paths = (path.relative_to(sweep) for path in sweep.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if not FOREIGN & set(path.parts)}
