"""A sweep, from its points to their summaries: check everything, load, plan, train pack after pack."""

import contextlib
import dataclasses
import gc
import logging
import shutil
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lora_jax.cache import cache_folder
from lora_jax.config.point import Point
from lora_jax.errors import UserError
from lora_jax.evaluation import build_evaluators, check_metrics
from lora_jax.methods import method_of
from lora_jax.records import RUN_FILE, Summary, write_run, write_summary
from lora_jax.sweep.costs import Costs, abstract_pack, shapes_of
from lora_jax.sweep.plan import PackPlan
from lora_jax.sweep.plan_file import next_index, plan_points, replace_pack
from lora_jax.sweep.setups import Setups
from lora_jax.sweep.speed import rough_seconds
from lora_jax.sweep.train_pack import train_pack
from lora_jax.tracking import TrackingSession
from lora_jax.train import record
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.display import ProgressDisplay
from lora_jax.train.memory import is_out_of_memory, size
from lora_jax.train.step import program_of

MAX_NAMES = 8  # of a pack's runs that the printed plan spells out; plan.json has them all


def run_points(points: Sequence[Point], *, home: Path, group: str) -> list[Summary]:
    """Trains `points`, packed, and returns their summaries in order; each is in its point's folder too.

    A point that has its results is not run again. A pack that fails is reported as failed, and the others go on.

    Args:
      points: the runs, each with a folder of its own.
      home: the folder of plan.json and the checkpoints.
      group: the W&B group.

    Raises:
      UserError: a folder is taken, or a base, a task or the disk cannot do what is asked for. Nothing has trained then.
    """
    # Compiled programs are kept for the next start, in this user's own cache.
    compiled = cache_folder() / "xla"
    compiled.mkdir(mode=0o700, parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name in ("absl", "jax._src.xla_bridge"):  # orbax tells of every step it takes, JAX of every absent TPU
        logging.getLogger(name).setLevel(logging.WARNING)
    _refuse_taken(points)
    for point in points:
        check_metrics(point.config)
    with ProgressDisplay() as display:
        sweep = Sweep(home, group, display, Setups(), TrackingSession())
        sweep.validate(points)
        display.stage("planning")
        costs = Costs(sweep.setups)
        packs = plan_points(points, home, costs)
        _refuse_full_disk(packs, home, costs)
        for pack in packs:
            display.say(describe_pack(pack))
        for pack in packs:
            sweep.run_pack(pack)
    summaries = [record.done_summary(point.folder) for point in points]
    if all(summary.status != "failed" for summary in summaries):
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return summaries


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the packs of a sweep share while they train."""

    home: Path
    group: str
    display: ProgressDisplay
    setups: Setups
    tracking: TrackingSession

    def validate(self, points: Sequence[Point]) -> None:
        """Loads what every point needs, and raises UserError for what it does not have."""
        for point in points:
            self.display.stage(f"loading {point.config.model.name} and {point.config.task.name}")
            setup = self.setups.get(point.config)
            method_of(point.config.method).validate(setup.base.model, point.config)
            build_evaluators(program_of(point.config), setup.base, point.config, setup.tokens)

    def run_pack(self, pack: PackPlan) -> None:
        """Trains a pack whose runs are not all done, in parts where it must.

        Parts are two halves, down to single runs, where a pack takes more memory than there is, and the runs that
        outlive stopped ones. A part goes on from the pack's newest checkpoint. Any other failure is its runs' own.
        """
        if all(record.is_done(point.folder) for point in pack.points):
            return
        try:
            setup = self.setups.get(pack.points[0].config)
            unfinished = train_pack(
                setup,
                pack,
                self.folder_of(pack),
                group=self.group,
                tracking=self.tracking,
                display=self.display,
            )
            parts = [[i for i in range(len(pack.points)) if i not in unfinished], unfinished] if unfinished else []
            reason = f"{len(unfinished)} of {len(pack.points)} runs are left, going on with them alone"
        except Exception as error:
            if not is_out_of_memory(error) or len(pack.points) == 1:
                self._fail(pack, error)
                return
            middle = len(pack.points) // 2
            parts = [list(range(middle)), list(range(middle, len(pack.points)))]
            reason = f"out of memory with {len(pack.points)} runs, halving it ({textwrap.shorten(str(error), 120)})"
        # Out here, because an exception holds on to the frames that it came through, and so to the pack's arrays.
        if not parts:
            shutil.rmtree(self.folder_of(pack), ignore_errors=True)
            return
        gc.collect()
        packs, step = self._split(pack, parts)
        names = " and ".join(str(part.index) for part in packs)
        self.display.say(f"pack {pack.index}: {reason}, from step {step or 0}, as packs {names}")
        for part in packs:
            self.run_pack(part)

    def folder_of(self, pack: PackPlan) -> Path:
        """Returns the folder of a pack's checkpoints."""
        return self.home / "checkpoints" / f"pack-{pack.index}"

    def _split(self, pack: PackPlan, parts: Sequence[Sequence[int]]) -> tuple[list[PackPlan], int | None]:
        """Makes packs of some runs each, in plan.json and out of the newest checkpoint, and returns its step."""
        first = next_index(self.home)
        packs = [pack.part(first + i, members) for i, members in enumerate(parts)]
        fingerprint = self.setups.get(pack.points[0].config).base.fingerprint
        split = [(self.folder_of(part), runs, self._arrays(part)) for part, runs in zip(packs, parts, strict=True)]
        with contextlib.closing(PackCheckpoints(self.folder_of(pack), base_fingerprint=fingerprint)) as checkpoints:
            step = checkpoints.split(self._arrays(pack), split)
        replace_pack(pack, packs, self.home)
        shutil.rmtree(self.folder_of(pack), ignore_errors=True)
        return packs, step

    def _arrays(self, pack: PackPlan) -> dict[str, Any]:
        """Returns the shapes of what a checkpoint of `pack` holds."""
        widest = Costs(self.setups).widest(pack.points)
        state, _, _ = abstract_pack(pack.points[0].config, widest, len(pack.points))
        return {"state": state, "best": state.params}

    def _fail(self, pack: PackPlan, error: Exception) -> None:
        """Writes down that a pack failed, and the traceback beside it."""
        message = f"{type(error).__name__}: {error}"
        self.display.say(f"pack {pack.index} failed: {message}")
        (self.home / f"pack-{pack.index}-error.txt").write_text("".join(traceback.format_exception(error)))
        setup = self.setups.get(pack.points[0].config)
        for point in pack.points:
            if record.is_done(point.folder):
                continue
            summary = record.initial_summary(setup, point, shapes_of(setup, point.config)).replace(error=message)
            point.folder.mkdir(parents=True, exist_ok=True)
            if not (point.folder / RUN_FILE).exists():
                write_run(point.folder, record.run_record(setup, point))
            write_summary(point.folder, summary)


def describe_pack(pack: PackPlan) -> str:
    """Returns a pack's line of the printed plan."""
    config = pack.points[0].config
    names = "  ".join(point.name for point in pack.points[:MAX_NAMES])
    names += f"  and {len(pack.points) - MAX_NAMES} more" if len(pack.points) > MAX_NAMES else ""
    storage = "" if config.base_storage == "auto" else f" on the {config.base_storage} base"
    minutes = rough_seconds(pack.flops, config.dtype) / 60
    return (
        f"pack {pack.index}: {len(pack.points)} x {config.method.name}{storage}, {pack.steps} steps of "
        f"{pack.tokens // pack.steps:,} tokens, {'about' if pack.exact else 'at most'} {pack.bytes / 2**30:.2f} GiB "
        f"beside the base, roughly {minutes:.1f} min of training: {names}"
    )


def _refuse_taken(points: Sequence[Point]) -> None:
    for point in points:
        if point.config.resume is None and (point.folder / "run.json").exists():
            raise UserError(
                f"{point.folder} already holds a run; go on with it by resume=<its sweep's folder>, or choose another "
                f"folder by hydra.sweep.dir=<new folder>"
            )


def _refuse_full_disk(packs: Sequence[PackPlan], home: Path, costs: Costs) -> None:
    """Counts the adapters, and two checkpoints (delta, its two moments, the best delta) of the largest pack."""
    adapters, checkpoints = 0, 0
    for pack in packs:
        deltas = sum(size(costs.shapes(point).params) for point in pack.points)
        adapters, checkpoints = adapters + deltas, max(checkpoints, 2 * 4 * deltas)
    free = shutil.disk_usage(home).free
    if adapters + checkpoints > free:
        raise UserError(
            f"{home}: this sweep writes about {(adapters + checkpoints) / 2**20:.0f} MiB and the disk has "
            f"{free / 2**20:.0f} MiB free; choose another by hydra.sweep.dir=<folder>"
        )
