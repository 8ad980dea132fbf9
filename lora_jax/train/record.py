"""What is written down about a run: who it is, where it ran, how it went. README.md has the layout."""

import datetime
import functools
import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lora_jax.data.tasks import scoring_of
from lora_jax.delta import count
from lora_jax.methods import AdapterInit
from lora_jax.track import Tracker, read_json
from lora_jax.train.plan import Point
from lora_jax.train.setup import Setup
from lora_jax.train.step import StepMetrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "hydra-core", "wandb", "tensorflow-datasets")


def open_tracker(setup: Setup, point: Point, group: str, resumed: int | None) -> Tracker:
    """The tracker of `point`; with `resumed`, its records up to that step are kept."""
    wandb = point.config.wandb
    return Tracker(
        point.folder,
        run_record(setup, point),
        group=group,
        wandb=wandb.mode,
        project=wandb.project,
        keep_until=resumed,
    )


def is_done(folder: Path) -> bool:
    """Whether the run in `folder` ended with results: it is not run again when its sweep is resumed."""
    return (folder / "summary.json").exists() and read_json(folder / "summary.json")["status"] != "failed"


def done_summary(folder: Path) -> dict[str, Any]:
    return read_json(folder / "summary.json")


def run_record(setup: Setup, point: Point) -> dict[str, Any]:
    """The content of run.json."""
    device = jax.devices()[0]
    return {
        "name": point.name,
        "config": point.config.model_dump(mode="json"),
        "overrides": list(point.overrides),
        "versions": {"python": sys.version.split()[0]} | {name: _version(name) for name in PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "base": {
            "source": setup.base.source,
            "fingerprint": setup.base.fingerprint,
            "parameters": setup.base.parameters,
        },
        "data": {"name": setup.task.name, "fingerprint": setup.data.fingerprint}
        | {split: len(examples) for split, examples in setup.data.splits.items()},
        "commit": _commit(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # what was typed: Hydra sees a few words more
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def identity(setup: Setup, point: Point, shapes: AdapterInit) -> dict[str, Any]:
    """The part of summary.json that is known before training; what is not known yet is null.

    `shapes` are those of what the run starts from.
    """
    run, base = point.config, setup.base.parameters
    scoring = scoring_of(run.task)
    reads, trainable = run.method.reads, shapes.trainable
    head = count({path: value for path, value in shapes.params.items() if path.startswith("head/")})
    return {
        "name": point.name,
        "status": "failed",
        "error": None,
        "method": run.method.name,
        "rank": run.rank if "rank" in reads else None,
        "alpha": run.alpha_of(run.rank) if "alpha" in reads else None,
        "targets": run.targets if "targets" in reads else None,
        "lr": run.lr,
        "seed": run.seed,
        "model": run.model.name,
        "task": run.task.name,
        "trainable": trainable,
        "adapter_parameters": trainable - head,
        "head_parameters": head,
        "base_parameters": base,
        "trainable_share": trainable / base,
        "metric": scoring.metric,
        "select": scoring.select,
        "test": None,
        "adapter_bytes": None,
    }


def adapter_config(setup: Setup, point: Point) -> dict[str, Any]:
    """What adapter.json says of how the adapter was made."""
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
    """One run's part of a step's metrics, as they are logged."""
    return {
        "train/loss": float(metrics.loss[i]),
        "train/lr": float(metrics.lr[i]),
        "train/grad_norm": float(metrics.grad_norm[i]),
        "train/update_norm": float(metrics.update_norm[i]),
        "train/param_norm": float(metrics.param_norm[i]),
        "train/tokens_per_s": tokens_per_s,
    }


def peak_bytes(compiled: Any) -> int:
    """Memory that XLA planned for a compiled program: its arguments, results and temporaries."""
    plan = compiled.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(held + plan.temp_size_in_bytes)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
