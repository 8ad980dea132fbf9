"""A sweep, from its points to their summaries: check everything, load, plan, train pack after pack."""

import logging
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lora_jax.errors import UserError
from lora_jax.methods import METHODS
from lora_jax.track import read_json, write_json
from lora_jax.train import memory, record
from lora_jax.train.loop import Loop, make_pack
from lora_jax.train.optimizer import hyper_of
from lora_jax.train.plan import PackPlan, Point, plan
from lora_jax.train.progress import Show
from lora_jax.train.setup import Setup, setup_of
from lora_jax.train.step import program_of
from lora_jax.weights.sources import cache_folder

# Names of a pack's runs that the printed plan spells out; plan.json has them all.
NAMED = 8


def run_points(points: Sequence[Point], *, home: Path, group: str) -> list[dict[str, Any]]:
    """Trains `points`, packed, and returns their summaries in order; each is in its point's folder too.

    `home` holds plan.json and the checkpoints; `group` is the W&B group. A point that has its results is not run
    again. A pack that fails is reported as failed, and the others go on. Raises UserError, before anything trains,
    for a folder that is taken, and for what a base, a task or the disk cannot do.
    """
    # Compiled programs are kept for the next start, in this user's own cache.
    compiled = cache_folder() / "xla"
    compiled.mkdir(mode=0o700, parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for talker in ("absl", "jax._src.xla_bridge"):  # orbax tells of every step it takes, JAX of every absent TPU
        logging.getLogger(talker).setLevel(logging.WARNING)
    _refuse_taken(points)
    with Show() as show:
        for point in points:
            show.stage(f"loading {point.config.model.name} and {point.config.task.name}")
            setup = setup_of(point.config)
            METHODS[point.config.method.name].check(setup.base.model, point.config)
        packs = _plan(points, home)
        _refuse_full_disk(packs, home)
        for pack in packs:
            names = "  ".join(point.name for point in pack.points[:NAMED])
            names += f"  and {len(pack.points) - NAMED} more" if len(pack.points) > NAMED else ""
            show.say(
                f"pack {pack.index}: {len(pack.points)} x {pack.points[0].config.method.name}, about "
                f"{len(pack.points) * pack.run_bytes / 2**30:.2f} GiB beside the base: {names}"
            )
        for pack in packs:
            if not all(record.is_done(point.folder) for point in pack.points):
                _run_pack(pack, home, group, show)
    summaries = [record.done_summary(point.folder) for point in points]
    if all(summary["status"] != "failed" for summary in summaries):
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return summaries


def _run_pack(pack: PackPlan, home: Path, group: str, show: Show) -> None:
    """Trains a pack. Out of memory, it is halved, down to single runs; any other failure is its runs' own."""
    setup = setup_of(pack.points[0].config)
    try:
        Loop(setup, make_pack(setup, pack.points), index=pack.index, home=home, group=group, show=show).run()
        shutil.rmtree(home / "checkpoints" / f"pack-{pack.index}", ignore_errors=True)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) and len(pack.points) > 1:
            show.say(f"pack {pack.index}: out of memory with {len(pack.points)} runs, halving it")
            for half in _halve(pack, home):
                _run_pack(half, home, group, show)
            return
        show.say(f"pack {pack.index} failed: {type(error).__name__}: {error}")
        (home / f"pack-{pack.index}-error.txt").write_text(traceback.format_exc())
        for point in pack.points:
            if not record.is_done(point.folder):
                _fail(setup, point, f"{type(error).__name__}: {error}")


def _fail(setup: Setup, point: Point, error: str) -> None:
    start = METHODS[point.config.method.name].start(setup.base.model, point.config)
    point.folder.mkdir(parents=True, exist_ok=True)
    if not (point.folder / "run.json").exists():
        write_json(point.folder / "run.json", record.run_record(setup, point))
    write_json(point.folder / "summary.json", record.identity(setup, point, start) | {"error": error})


# ---- the plan


def _plan(points: Sequence[Point], home: Path) -> list[PackPlan]:
    """Packs for `points`: those that plan.json has, as a resumed sweep must keep them, and new ones for the rest.

    plan.json keeps the packs of other points too: some sweepers launch a sweep in several batches.
    """
    recorded = _recorded(home)
    known = _known(points, recorded)
    planned = {point.name for pack in known for point in pack.points}
    first = 1 + max((pack["index"] for pack in recorded), default=-1)
    fresh = [
        PackPlan(first + pack.index, pack.points, pack.run_bytes)
        for pack in plan([point for point in points if point.name not in planned], _cost)
    ]
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "plan.json", {"packs": recorded + [pack.record() for pack in fresh]})
    return known + fresh


def _recorded(home: Path) -> list[dict[str, Any]]:
    return read_json(home / "plan.json")["packs"] if (home / "plan.json").exists() else []


def _known(points: Sequence[Point], recorded: list[dict[str, Any]]) -> list[PackPlan]:
    by_name = {point.name: point for point in points}
    return [
        PackPlan(pack["index"], tuple(by_name[name] for name in pack["runs"]), pack["run_bytes"])
        for pack in recorded
        if all(name in by_name for name in pack["runs"])
    ]


def _halve(pack: PackPlan, home: Path) -> list[PackPlan]:
    """Two packs in place of `pack`, in plan.json too."""
    shutil.rmtree(home / "checkpoints" / f"pack-{pack.index}", ignore_errors=True)
    recorded, middle = _recorded(home), len(pack.points) // 2
    first = 1 + max(other["index"] for other in recorded)
    halves = [
        PackPlan(first + i, half, pack.run_bytes) for i, half in enumerate((pack.points[:middle], pack.points[middle:]))
    ]
    kept = [other for other in recorded if other["index"] != pack.index]
    write_json(home / "plan.json", {"packs": kept + [half.record() for half in halves]})
    return halves


def _cost(group: Sequence[Point]) -> tuple[int, int]:
    """(bytes that the costliest run of `group` takes, bytes there are)."""
    run = max((point.config for point in group), key=lambda run: (run.rank, len(run.targets)))
    setup = setup_of(run)
    start = METHODS[run.method.name].start(setup.base.model, run)
    longest = max(setup.train_batches(run, (run.seed,)).lengths())
    run_bytes = memory.run_bytes(program_of(run), setup.base.model, start, hyper_of(run, 1), run.batch, longest)
    return run_bytes, memory.budget()


# ---- what would go wrong later


def _refuse_taken(points: Sequence[Point]) -> None:
    for point in points:
        if point.config.resume is None and (point.folder / "run.json").exists():
            raise UserError(
                f"{point.folder} already holds a run; go on with it by resume=<its sweep's folder>, or choose another "
                f"folder by hydra.sweep.dir=<new folder>"
            )


def _refuse_full_disk(packs: Sequence[PackPlan], home: Path) -> None:
    """Adapters, and two checkpoints (delta, its two moments, the best delta) of the largest pack."""
    adapters, checkpoints = 0, 0
    for pack in packs:
        setup = setup_of(pack.points[0].config)
        starts = (METHODS[point.config.method.name].start(setup.base.model, point.config) for point in pack.points)
        deltas = sum(memory.size(start.params) for start in starts)
        adapters, checkpoints = adapters + deltas, max(checkpoints, 2 * 4 * deltas)
    free = shutil.disk_usage(home).free
    if adapters + checkpoints > free:
        raise UserError(
            f"{home}: this sweep writes about {(adapters + checkpoints) / 2**20:.0f} MiB and the disk has "
            f"{free / 2**20:.0f} MiB free; choose another by hydra.sweep.dir=<folder>"
        )
