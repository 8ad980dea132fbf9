"""The result of each run of a table, a line of ``results.jsonl``. The table is rebuilt from these lines alone."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lora_jax.metrics import METRICS, Predictions, score
from lora_jax.records import Device, Record, Status, Summary, read_metrics, read_run, read_summary
from lora_jax.records.schema import Integer

RESULTS_FILE, COMMANDS_FILE = "results.jsonl", "commands.jsonl"
Stage = Literal["tune", "train"]


class RunResult(Record):
    """What the table needs of a run, and where and how it was trained."""

    name: str
    stage: Stage
    row: str
    task: str
    seed: Integer
    lr: float
    status: Status
    select: str  # the validation metric that chooses
    validations: tuple[tuple[int, float], ...]  # step and value of `select`, in order
    valid: Mapping[str, float]  # all validation figures at the best epoch
    test: Mapping[str, float]  # at the best epoch
    rescored: tuple[str, ...] = ()  # metrics that were computed later, from the generated texts
    overrides: tuple[str, ...]
    other_settings: tuple[str, ...] = ()  # of the command line, if they make it another run than the recipe's
    steps: Integer | None
    tokens: Integer | None
    trainable: Integer | None
    adapter_parameters: Integer | None
    base_parameters: Integer | None
    seconds: float | None
    compile_seconds: float | None
    peak_memory_bytes: Integer | None
    pack: Integer | None
    pack_runs: Integer | None
    device: Device
    versions: Mapping[str, str | None]
    commit: str | None
    start_time: str | None
    base: str | None
    base_fingerprint: str | None
    data_fingerprint: str | None
    examples: Mapping[str, Integer]

    @property
    def selection_score(self) -> float | None:
        """The validation figure that chooses between runs; None if it is not a finite number."""
        value = self.valid.get(self.select)
        return value if value is not None and math.isfinite(value) else None


class CommandRecord(Record):
    """A command that trained runs of the table: a line of ``commands.jsonl``."""

    command: str
    start_time: str
    seconds: float
    device: Device
    versions: Mapping[str, str | None]
    commit: str | None
    runs: Integer  # that it finished


def read_result(
    folder: Path, *, stage: Stage, row: str, other_settings: Iterable[str] = (), metrics: Iterable[str] = ()
) -> RunResult | None:
    """Returns the result of the run in `folder`; None if it is not over.

    Metrics of generated texts that the training machine could not compute, such as METEOR without Java, are computed
    here from ``texts.jsonl``, if this machine can.

    Args:
      folder: the run's folder.
      stage: what the run is for.
      row: the row's name.
      other_settings: as in RunResult.
      metrics: test metrics that the table shows.

    Raises:
      UserError: a record is damaged.
    """
    summary = read_summary(folder)
    if summary is None:
        return None
    run = read_run(folder)
    select = summary.select or ""
    curve = [(record.step, record.figure(f"valid/{select}")) for record in read_metrics(folder, summary)]
    test = dict(summary.test or {})
    rescored = _rescore(folder, [name for name in metrics if name not in test]) if test else {}
    return RunResult(
        name=run.name,
        stage=stage,
        row=row,
        task=run.axes.task or "",
        seed=run.axes.seed or 0,
        lr=run.axes.lr or math.nan,
        status=summary.status,
        select=select,
        validations=tuple((step, value) for step, value in curve if value is not None),
        valid={key: value for key, value in (summary.valid_best or {}).items() if key != "step"},
        test=test | rescored,
        rescored=tuple(rescored),
        overrides=run.overrides,
        other_settings=tuple(other_settings),
        pack=None if summary.pack is None else summary.pack.index,
        pack_runs=None if summary.pack is None else summary.pack.runs,
        device=run.device,
        versions=run.versions,
        commit=run.commit,
        start_time=run.start_time,
        base=run.base.source,
        base_fingerprint=run.base.fingerprint,
        data_fingerprint=run.data.fingerprint,
        examples=run.data.examples,
        **_counts(summary),
    )


def _counts(summary: Summary) -> dict[str, Any]:
    names = ("steps", "tokens", "trainable", "adapter_parameters", "base_parameters", "seconds", "compile_seconds")
    return {name: getattr(summary, name) for name in (*names, "peak_memory_bytes")}


def _rescore(folder: Path, names: list[str]) -> dict[str, float]:
    path = folder / "texts.jsonl"
    known = [name for name in names if name in METRICS and METRICS[name].unavailable() is None]
    if not known or not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = Predictions(texts=[line["text"] for line in lines], references=[line["references"] for line in lines])
    return score(texts, known)
