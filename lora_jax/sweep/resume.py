"""Checks a sweep against the records in its folder. A resumed run is the run that was asked for, or it is refused."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.config import parse
from lora_jax.config.point import Point
from lora_jax.errors import UserError, shown
from lora_jax.records import (
    RECORD_VERSION,
    RUN_FILE,
    RunRecord,
    find_runs,
    flat,
    inputs_key,
    read_json,
    read_metrics,
    read_run,
    read_summary,
)
from lora_jax.train import record
from lora_jax.train.setup import Setup
from lora_jax.train.start import start_fingerprint

ANEW = "or start anew with hydra.sweep.dir=<new folder>"
IRRELEVANT = ("wandb",)  # settings that do not change a run
LAST_COMMITS = {1: "0140d3d", 2: "0f4e48a"}  # of each version of the records

# Runs with their folders, by the settings that determine their base and data.
RecordedInputs = Mapping[tuple[str, ...], Sequence[tuple[Path, RunRecord]]]


def check_runs(points: Iterable[Point]) -> None:
    """Checks `points` against the runs that are already in their folders. It needs no base and no data.

    Raises:
      UserError: a folder has a run and nothing is resumed, or has a run of other settings, or one that an earlier
        version began and did not finish, or a damaged record.
    """
    for point in points:
        if not (point.folder / RUN_FILE).exists():
            continue
        if point.config.resume is None:
            raise UserError(
                f"{point.folder} already has a run; continue it with resume=<its sweep's folder>, or choose another "
                f"folder with hydra.sweep.dir=<new folder>"
            )
        run, finished = read_run(point.folder), record.is_done(point.folder)
        version = read_json(point.folder / RUN_FILE).get("version", 1)
        if version != RECORD_VERSION and not finished:
            raise UserError(
                f"{point.folder} is not finished, and an earlier version of lora_jax wrote it (records of version "
                f"{version}, this is {RECORD_VERSION}), whose checkpoints this one cannot read; finish it with that "
                f"version (commit {LAST_COMMITS[version]}), {ANEW}"
            )
        if changes := _changes(_with_defaults(run.config), point.config.model_dump(mode="json"), missing=not finished):
            raise UserError(
                f"{point.folder} has a run of other settings than this command gives now: {'; '.join(changes)}. "
                f"Restore the settings and resume, {ANEW}"
            )
        if not finished and run.base.adapter != start_fingerprint(point.config):
            raise UserError(
                f"base={point.config.base}: the adapter has changed since {point.folder} began; restore it and resume, "
                f"{ANEW}"
            )
        read_metrics(point.folder, read_summary(point.folder))


def recorded_inputs(sweep: Path) -> RecordedInputs:
    """Returns the runs in `sweep`, by the settings that determine their base and data.

    Raises:
      UserError: a record is damaged.
    """
    runs: dict[tuple[str, ...], list[tuple[Path, RunRecord]]] = {}
    for folder in find_runs(sweep, required=False):
        run = read_run(folder)
        runs.setdefault(inputs_key(run.config), []).append((folder, run))
    return runs


def check_inputs(setup: Setup, runs: Sequence[tuple[Path, RunRecord]]) -> None:
    """Checks the base and the data of `setup` against the runs that have trained on them.

    Raises:
      UserError: the base or the data is another one now, so runs of one sweep could not be compared.
    """
    for folder, run in runs:
        for kind, recorded, now in (
            (f"base {setup.base.source}", run.base.fingerprint, setup.base.fingerprint),
            (f"data of task={setup.task.name}", run.data.fingerprint, setup.data.fingerprint),
        ):
            if recorded is not None and recorded != now:
                raise UserError(
                    f"the {kind} has changed since {folder} began: its fingerprint was {recorded[:12]} and is "
                    f"{now[:12]} now. Restore it and resume, {ANEW}"
                )


def _with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns recorded settings, and those that an earlier commit did not have, at the defaults that change no run."""
    try:
        return parse(config).model_dump(mode="json")
    except UserError:  # that commit had settings that are gone now
        return config


def _changes(recorded: Mapping[str, Any], now: Mapping[str, Any], *, missing: bool) -> list[str]:
    """Returns a text for each setting that differs. A setting that only one of them has counts if `missing`."""
    before, after = flat(recorded), flat(now)
    keys = before.keys() | after.keys() if missing else before.keys() & after.keys()
    return [
        f"{key} was {shown(before.get(key))} and is {shown(after.get(key))}"
        for key in sorted(keys)
        if key.split(".")[0] not in IRRELEVANT and before.get(key) != after.get(key)
    ]
