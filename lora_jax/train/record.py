"""Fills the records of a run: its settings, environment, metrics and results. `lora_jax.records` has the schema."""

import datetime
import functools
import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lora_jax.config.point import Point
from lora_jax.data.tasks import scoring_of
from lora_jax.delta import count
from lora_jax.errors import redact
from lora_jax.methods import AdapterInit
from lora_jax.records import Axes, Base, Data, Device, RunRecord, Summary, read_summary
from lora_jax.tracking import Tracker, TrackingSession
from lora_jax.train.setup import Setup
from lora_jax.train.start import start_fingerprint
from lora_jax.train.step import StepMetrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "hydra-core", "wandb", "tensorflow-datasets")


def open_tracker(
    tracking: TrackingSession, setup: Setup, point: Point, *, group: str, keep_until: int | None
) -> Tracker:
    """Returns the tracker of `point`.

    Args:
      keep_until: the step from which the run continues. Records after it are dropped. None: the run starts anew.
    """
    return tracking.tracker(
        point.folder, run_record(setup, point), group=group, settings=point.config, keep_until=keep_until
    )


def is_done(folder: Path) -> bool:
    """Returns whether the run in `folder` has results. A resumed sweep does not run it again."""
    summary = read_summary(folder)
    return summary is not None and summary.status != "failed"


def done_summary(folder: Path) -> Summary:
    """Returns the summary of a run that has ended.

    Raises:
      FileNotFoundError: the run has not ended.
    """
    summary = read_summary(folder)
    if summary is None:
        raise FileNotFoundError(f"{folder} has no summary.json")
    return summary


def axes_of(point: Point) -> Axes:
    """Returns the settings that distinguish `point` in its sweep. Settings that its method does not read are None."""
    run = point.config
    method = run.method
    return Axes(
        model=run.model.name,
        task=run.task.name,
        method=method.name,
        method_title=method.title,
        trains_base=method.trains_base,
        rank=run.rank if "rank" in method.reads else None,
        alpha=run.alpha_of(run.rank) if "alpha" in method.reads else None,
        targets=run.targets if "targets" in method.reads else None,
        lr=run.lr,
        seed=run.seed,
    )


def run_record(setup: Setup, point: Point) -> RunRecord:
    """Returns the content of run.json."""
    device = jax.devices()[0]
    return RunRecord(
        name=point.name,
        axes=axes_of(point),
        config=point.config.model_dump(mode="json"),
        overrides=point.overrides,
        versions={"python": sys.version.split()[0]} | {name: _version(name) for name in PACKAGES},
        device=Device(platform=device.platform, kind=device.device_kind, count=jax.device_count()),
        base=Base(
            source=setup.base.source,
            fingerprint=setup.base.fingerprint,
            parameters=setup.base.parameters,
            adapter=start_fingerprint(point.config),
        ),
        data=Data(
            name=setup.task.name,
            fingerprint=setup.data.fingerprint,
            examples={split: len(examples) for split, examples in setup.data.splits.items()},
        ),
        commit=_commit(),
        command=redact(shlex.join(["python", *sys.orig_argv[1:]])),  # as typed; Hydra gets more arguments
        start_time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def initial_summary(setup: Setup, point: Point, shapes: AdapterInit) -> Summary:
    """Returns the summary of a run that has not trained: status "failed", and its counts of parameters.

    Args:
      shapes: the shapes of the run's parameters and constants.
    """
    base, trainable, scoring = setup.base.parameters, shapes.trainable, scoring_of(point.config.task)
    head = count({path: value for path, value in shapes.params.items() if path.startswith("head/")})
    return Summary(
        **dict(axes_of(point)),
        name=point.name,
        status="failed",
        trainable=trainable,
        adapter_parameters=trainable - head,
        head_parameters=head,
        base_parameters=base,
        trainable_share=trainable / base,
        metric=scoring.metric,
        select=scoring.select,
    )


def adapter_config(setup: Setup, point: Point) -> dict[str, Any]:
    """Returns the field ``config`` of adapter.json: the settings of the training."""
    run = point.config
    return {
        "method": run.method.name,
        "rank": run.rank,
        "alpha": run.alpha_of(run.rank),
        "targets": run.targets,
        "family": run.model.family,
        "pool": run.model.pool,
        "dtype": run.dtype,
        "base_storage": run.base_storage,
        "labels": list(setup.data.labels),
        "run": run.model_dump(mode="json"),
    }


def train_figures(metrics: StepMetrics, i: int, tokens_per_s: float) -> dict[str, float]:
    """Returns the metrics of run `i` at one step, by the names in metrics.jsonl."""
    return {
        "train/loss": float(metrics.loss[i]),
        "train/lr": float(metrics.lr[i]),
        "train/grad_norm": float(metrics.grad_norm[i]),
        "train/update_norm": float(metrics.update_norm[i]),
        "train/param_norm": float(metrics.param_norm[i]),
        "train/tokens_per_s": tokens_per_s,
    }


@functools.cache  # it takes 10 ms, and each run of a sweep has nine
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str | None:
    folder = Path(__file__).parent
    try:
        result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() or None
