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
from lora_jax.errors import UserError
from lora_jax.evaluation import build_evaluators, check_metrics
from lora_jax.methods import method_of
from lora_jax.track import read_json, write_json
from lora_jax.train import memory, record
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.loop import Loop, is_out_of_memory, make_pack
from lora_jax.train.plan import PackPlan, Point, plan
from lora_jax.train.progress import Show
from lora_jax.train.setup import Setup, setup_of
from lora_jax.train.speed import rough_seconds
from lora_jax.train.step import program_of

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
    for point in points:
        check_metrics(point.config)
    with Show() as show:
        for point in points:
            show.stage(f"loading {point.config.model.name} and {point.config.task.name}")
            setup = setup_of(point.config)
            method_of(point.config.method).validate(setup.base.model, point.config)
            build_evaluators(program_of(point.config), setup.base, point.config, setup.tokens)
        show.stage("planning")
        costs = memory.Costs()
        packs = _plan(points, home, costs)
        _refuse_full_disk(packs, home, costs)
        for pack in packs:
            show.say(_told(pack))
        for pack in packs:
            if not all(record.is_done(point.folder) for point in pack.points):
                _run_pack(pack, home, group, show)
    summaries = [record.done_summary(point.folder) for point in points]
    if all(summary["status"] != "failed" for summary in summaries):
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return summaries


def _told(pack: PackPlan) -> str:
    """A line of the printed plan."""
    names = "  ".join(point.name for point in pack.points[:NAMED])
    names += f"  and {len(pack.points) - NAMED} more" if len(pack.points) > NAMED else ""
    stored = f" on the {base} base" if (base := pack.points[0].config.base_storage) != "auto" else ""
    minutes = rough_seconds(pack.flops, pack.points[0].config.dtype) / 60
    return (
        f"pack {pack.index}: {len(pack.points)} x {pack.points[0].config.method.name}{stored}, {pack.steps} steps of "
        f"{pack.tokens // pack.steps:,} tokens, {'about' if pack.exact else 'at most'} {pack.bytes / 2**30:.2f} GiB "
        f"beside the base, roughly {minutes:.1f} min of training: {names}"
    )


def _run_pack(pack: PackPlan, home: Path, group: str, show: Show) -> None:
    """Trains a pack, in parts where it must: two halves, down to single runs, where it takes more memory than there is,
    and the runs that outlive stopped ones. A part goes on from the pack's newest checkpoint. Any other failure is its
    runs' own.
    """
    try:
        going = _trained(pack, home, group, show)
        parts = [[i for i in range(len(pack.points)) if i not in going], going] if going else []
        why = f"{len(going)} of {len(pack.points)} runs are left, going on with them alone"
    except Exception as error:
        if not is_out_of_memory(error) or len(pack.points) == 1:
            _fail_pack(pack, home, show, error)
            return
        middle = len(pack.points) // 2
        parts = [list(range(middle)), list(range(middle, len(pack.points)))]
        why = f"out of memory with {len(pack.points)} runs, halving it ({textwrap.shorten(str(error), 120)})"
    # Out here, because an exception holds on to the frames that it came through, and so to the pack's arrays.
    if parts:
        gc.collect()
        packs, step = _split(pack, parts, home)
        show.say(
            f"pack {pack.index}: {why}, from step {step or 0}, as packs {' and '.join(str(p.index) for p in packs)}"
        )
        for part in packs:
            if not all(record.is_done(point.folder) for point in part.points):
                _run_pack(part, home, group, show)
    else:
        shutil.rmtree(_checkpoints(pack, home), ignore_errors=True)


def _trained(pack: PackPlan, home: Path, group: str, show: Show) -> list[int]:
    setup = setup_of(pack.points[0].config)
    state = make_pack(setup, pack.points)
    evaluators = build_evaluators(state.program, setup.base, pack.points[0].config, setup.tokens)
    return Loop(setup, state, evaluators, index=pack.index, home=home, group=group, show=show).run()


def _fail_pack(pack: PackPlan, home: Path, show: Show, error: Exception) -> None:
    setup = setup_of(pack.points[0].config)
    show.say(f"pack {pack.index} failed: {type(error).__name__}: {error}")
    (home / f"pack-{pack.index}-error.txt").write_text("".join(traceback.format_exception(error)))
    for point in pack.points:
        if not record.is_done(point.folder):
            _fail(setup, point, f"{type(error).__name__}: {error}")


def _fail(setup: Setup, point: Point, error: str) -> None:
    identity = record.identity(setup, point, memory.shapes_of(point.config))
    point.folder.mkdir(parents=True, exist_ok=True)
    if not (point.folder / "run.json").exists():
        write_json(point.folder / "run.json", record.run_record(setup, point))
    write_json(point.folder / "summary.json", identity | {"error": error})


# ---- the plan


def _plan(points: Sequence[Point], home: Path, costs: memory.Costs) -> list[PackPlan]:
    """Packs for `points`: those that plan.json has, as a resumed sweep must keep them, and new ones for the rest.

    plan.json keeps the packs of other points too: some sweepers launch a sweep in several batches.
    """
    recorded = _recorded(home)
    known = _known(points, recorded)
    planned = {point.name for pack in known for point in pack.points}
    first = 1 + max((pack["index"] for pack in recorded), default=-1)
    fresh = [
        dataclasses.replace(pack, index=first + pack.index)
        for pack in plan([point for point in points if point.name not in planned], costs)
    ]
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "plan.json", {"packs": recorded + [pack.record() for pack in fresh]})
    return known + fresh


def _recorded(home: Path) -> list[dict[str, Any]]:
    return read_json(home / "plan.json")["packs"] if (home / "plan.json").exists() else []


def _known(points: Sequence[Point], recorded: list[dict[str, Any]]) -> list[PackPlan]:
    by_name = {point.name: point for point in points}
    return [
        PackPlan(
            **{key: pack[key] for key in pack if key != "runs"}, points=tuple(by_name[name] for name in pack["runs"])
        )
        for pack in recorded
        if all(name in by_name for name in pack["runs"])
    ]


def _split(pack: PackPlan, parts: Sequence[Sequence[int]], home: Path) -> tuple[list[PackPlan], int | None]:
    """Packs of the runs at the places `parts`, in place of `pack`: in plan.json, and with its newest checkpoint."""
    recorded = _recorded(home)
    first = 1 + max(other["index"] for other in recorded)
    packs = [pack.part(first + i, members) for i, members in enumerate(parts)]
    setup = setup_of(pack.points[0].config)
    split = [(_checkpoints(part, home), members, _arrays(part)) for part, members in zip(packs, parts, strict=True)]
    with contextlib.closing(
        PackCheckpoints(_checkpoints(pack, home), base_fingerprint=setup.base.fingerprint)
    ) as checkpoints:
        step = checkpoints.split(_arrays(pack), split)
    kept = [other for other in recorded if other["index"] != pack.index]
    write_json(home / "plan.json", {"packs": kept + [part.record() for part in packs]})
    shutil.rmtree(_checkpoints(pack, home), ignore_errors=True)
    return packs, step


def _arrays(pack: PackPlan) -> dict[str, Any]:
    """The shapes of what a checkpoint of `pack` holds."""
    widest = memory.Costs().widest(pack.points)
    state, _, _ = memory.abstract(pack.points[0].config, widest, len(pack.points))
    return {"state": state, "best": state.params}


def _checkpoints(pack: PackPlan, home: Path) -> Path:
    return home / "checkpoints" / f"pack-{pack.index}"


# ---- what would go wrong later


def _refuse_taken(points: Sequence[Point]) -> None:
    for point in points:
        if point.config.resume is None and (point.folder / "run.json").exists():
            raise UserError(
                f"{point.folder} already holds a run; go on with it by resume=<its sweep's folder>, or choose another "
                f"folder by hydra.sweep.dir=<new folder>"
            )


def _refuse_full_disk(packs: Sequence[PackPlan], home: Path, costs: memory.Costs) -> None:
    """Adapters, and two checkpoints (delta, its two moments, the best delta) of the largest pack."""
    adapters, checkpoints = 0, 0
    for pack in packs:
        deltas = sum(memory.size(costs.shapes(point).params) for point in pack.points)
        adapters, checkpoints = adapters + deltas, max(checkpoints, 2 * 4 * deltas)
    free = shutil.disk_usage(home).free
    if adapters + checkpoints > free:
        raise UserError(
            f"{home}: this sweep writes about {(adapters + checkpoints) / 2**20:.0f} MiB and the disk has "
            f"{free / 2**20:.0f} MiB free; choose another by hydra.sweep.dir=<folder>"
        )
