"""Runs a sweep: checks and loads everything, plans packs, and trains one pack after another."""

import collections
import contextlib
import dataclasses
import gc
import itertools
import logging
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lora_jax.cache import private_folder
from lora_jax.config.point import Point
from lora_jax.errors import UserError, is_disk_full, is_interrupt, message_of, redact
from lora_jax.evaluation import build_evaluators, check_metrics
from lora_jax.methods import method_of
from lora_jax.records import RUN_FILE, Summary, inputs_key, locked, write_atomically, write_run, write_summary
from lora_jax.sweep.costs import Costs, abstract_pack, shapes_of
from lora_jax.sweep.plan import PackPlan, separating_settings
from lora_jax.sweep.plan_file import next_index, plan_points, replace_pack
from lora_jax.sweep.prepare import Preparation
from lora_jax.sweep.resume import RecordedInputs, check_inputs, check_runs, recorded_inputs
from lora_jax.sweep.setups import Setups
from lora_jax.sweep.speed import rough_seconds
from lora_jax.sweep.train_pack import train_pack
from lora_jax.tracking import TrackingSession
from lora_jax.train import record
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.display import ProgressDisplay
from lora_jax.train.memory import is_out_of_memory, size
from lora_jax.train.pack import initialise
from lora_jax.train.start import check_start
from lora_jax.train.step import check_objective, program_of

MAX_PROGRAMS = 4  # that differ, before JAX's caches are cleared
MAX_NAMES = 8  # names of a pack's runs in the printed plan; plan.json has all names


def run_points(points: Sequence[Point], *, home: Path, group: str, sweep: Path | None = None) -> list[Summary]:
    """Trains `points` in packs, and returns their summaries in order. Each summary is in its point's folder too.

    A point that has results is not run again. A pack that fails is reported, and the other packs still train.

    Args:
      points: the runs. Each has its own folder.
      home: the folder of plan.json and the checkpoints.
      group: the W&B group.
      sweep: the folder of the whole sweep, if these points are a part of it; by default `home`.

    Raises:
      UserError: a folder already has a run, or one of other settings, base or data; a base or a task does not allow the
        settings; another process uses `home`; or the disk is too small. This is raised before training. It is also
        raised when the disk is full, and the points can then be resumed.
    """
    sweep = sweep or home
    _refuse_shared_folders(points)
    home.mkdir(parents=True, exist_ok=True)
    # Compiled programs are cached for later starts, in a folder that only this user can write to.
    jax.config.update("jax_compilation_cache_dir", str(private_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Orbax logs every step, and tracebacks of errors that it also raises; so does asyncio for tasks of Orbax.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with locked(home):
        check_runs(points)
        for point in points:
            check_metrics(point.config)
            check_objective(point.config)
        with ProgressDisplay() as display:
            setups = Setups()
            run = Sweep(
                home,
                group,
                display,
                setups,
                Preparation(setups, ahead=jax.default_backend() != "cpu"),
                TrackingSession(),
            )
            run.validate(points, recorded_inputs(sweep))
            display.stage("planning")
            costs = Costs(run.setups)
            packs = plan_points(points, home, costs)
            _refuse_full_disk(packs, home, costs)
            for pack, settings in zip(packs, separating_settings(packs), strict=True):
                display.say(describe_pack(pack, settings))
            try:
                programs = 0
                for pack, following in itertools.zip_longest(packs, packs[1:]):
                    run.run_pack(pack, following)
                    programs += following is not None and costs.program(pack.points) != costs.program(following.points)
                    if programs == MAX_PROGRAMS:
                        jax.clear_caches()  # else the memory would grow with the number of programs
                        programs = 0
            except Exception as error:
                if not is_disk_full(error):
                    raise
                raise UserError(
                    f"{sweep}: the disk is full ({message_of(error)}); free some space, then continue "
                    f"with resume={sweep}"
                ) from error
        summaries = [record.done_summary(point.folder) for point in points]
        if all(summary.status != "failed" for summary in summaries):
            shutil.rmtree(home / "checkpoints", ignore_errors=True)
        return summaries


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The objects that the packs of a sweep share."""

    home: Path
    group: str
    display: ProgressDisplay
    setups: Setups
    preparation: Preparation
    tracking: TrackingSession

    def validate(self, points: Sequence[Point], recorded: RecordedInputs) -> None:
        """Loads the setup of every point and checks its settings.

        Args:
          points: the runs.
          recorded: the runs that the whole sweep already has.

        Raises:
          UserError: a setup cannot be loaded, does not allow the settings of a point, or differs from the base or data
            of a recorded run.
        """
        for point in points:
            self.display.stage(f"loading {point.config.model.name} and {point.config.task.name}")
            setup = self.setups.get(point.config)
            check_inputs(setup, recorded.get(inputs_key(point.config.model_dump(mode="json")), ()))
            method_of(point.config.method).validate(setup.base.model, point.config)
            check_start(setup, point.config)
            build_evaluators(program_of(point.config), setup.base, point.config, setup.tokens)

    def run_pack(self, pack: PackPlan, following: PackPlan | None = None) -> None:
        """Trains a pack, unless all its runs have results, and splits it if necessary.

        The programs of the `following` pack are compiled meanwhile.

        A pack that runs out of memory is split into halves, down to single runs. A pack in which the `stop` rule has
        ended runs may be split into the ended and the unfinished runs. A part continues from the pack's newest
        checkpoint. Any other error fails the runs of the pack.
        """
        if all(record.is_done(point.folder) for point in pack.points):
            self._clear(pack)
            return
        for point in pack.points:
            self.setups.get(point.config)  # a base or data that has changed ends the sweep
        try:
            unfinished = self._train(pack, following)
            parts = [[i for i in range(len(pack.points)) if i not in unfinished], unfinished] if unfinished else []
            reason = f"{len(unfinished)} of {len(pack.points)} runs are unfinished and continue in their own pack"
        except Exception as error:
            if is_disk_full(error) or is_interrupt(error):
                raise
            if not is_out_of_memory(error) or len(pack.points) == 1:
                self._fail(pack, error)
                return
            middle = len(pack.points) // 2
            parts = [list(range(middle)), list(range(middle, len(pack.points)))]
            reason = f"out of memory with {len(pack.points)} runs, halving it ({message_of(error)})"
        # This is outside the except block, because an exception refers to its frames, and so to the pack's arrays.
        if not parts:
            self._clear(pack)
            return
        gc.collect()
        packs, step = self._split(pack, parts)
        names = " and ".join(str(part.index) for part in packs)
        self.display.say(f"pack {pack.index}: {reason}, from step {step or 0}, as packs {names}")
        for part in packs:
            self.run_pack(part)

    def _train(self, pack: PackPlan, following: PackPlan | None) -> list[int]:
        """Initialises and trains a pack while its programs, and those of the `following` pack, are compiled.

        Returns:
          The indices of unfinished runs that should continue in their own pack.
        """
        prepared = self.preparation.prepare(pack)
        initialise(prepared.pack)
        if following is not None and not all(record.is_done(point.folder) for point in following.points):
            self.preparation.prepare_ahead(following)
        folder = self.folder_of(pack)
        return train_pack(prepared, pack, folder, group=self.group, tracking=self.tracking, display=self.display)

    def folder_of(self, pack: PackPlan) -> Path:
        """Returns the folder of a pack's checkpoints."""
        return self.home / "checkpoints" / f"pack-{pack.index}"

    def _error_file(self, pack: PackPlan) -> Path:
        return self.home / f"pack-{pack.index}-error.txt"

    def _clear(self, pack: PackPlan) -> None:
        """Removes what a pack with results no longer needs: its checkpoints, and the error of a start that failed."""
        shutil.rmtree(self.folder_of(pack), ignore_errors=True)
        self._error_file(pack).unlink(missing_ok=True)

    def _split(self, pack: PackPlan, parts: Sequence[Sequence[int]]) -> tuple[list[PackPlan], int | None]:
        """Splits `pack` and its newest checkpoint, and updates plan.json. Returns the new packs and the step."""
        first_index = next_index(self.home)
        packs = [pack.part(first_index + i, members) for i, members in enumerate(parts)]
        split = [
            (self.folder_of(part), self._fingerprint(part), runs, self._arrays(part))
            for part, runs in zip(packs, parts, strict=True)
        ]
        names = [point.name for point in pack.points]
        whole = PackCheckpoints(
            self.folder_of(pack), base_fingerprint=self._fingerprint(pack), runs=names, warn=self.display.say
        )
        with contextlib.closing(whole) as checkpoints:
            step = checkpoints.split(self._arrays(pack), split)
        replace_pack(pack, packs, self.home)
        shutil.rmtree(self.folder_of(pack), ignore_errors=True)
        return packs, step

    def _fingerprint(self, pack: PackPlan) -> str:
        return self.setups.get(pack.points[0].config).base.fingerprint

    def _arrays(self, pack: PackPlan) -> dict[str, Any]:
        """Returns the shapes of the arrays in a checkpoint of `pack`."""
        widest = Costs(self.setups).widest(pack.points)
        state, _, _ = abstract_pack(pack.points[0].config, widest, len(pack.points))
        return {"state": state, "best": state.params}

    def _fail(self, pack: PackPlan, error: Exception) -> None:
        """Writes the summaries of a failed pack, and its traceback to ``pack-<index>-error.txt``."""
        message = redact(f"{type(error).__name__}: {error}")
        self.display.say(f"pack {pack.index} failed: {message}")
        lines = redact("".join(traceback.format_exception(error)))
        write_atomically(self._error_file(pack), lines.encode(errors="replace"))
        for point in pack.points:
            if record.is_done(point.folder):
                continue
            setup = self.setups.get(point.config)
            summary = record.initial_summary(setup, point, shapes_of(setup, point.config)).replace(error=message)
            point.folder.mkdir(parents=True, exist_ok=True)
            if not (point.folder / RUN_FILE).exists():
                write_run(point.folder, record.run_record(setup, point))
            write_summary(point.folder, summary)


def describe_pack(pack: PackPlan, settings: str) -> str:
    """Returns the line that describes a pack in the printed plan.

    Args:
      pack: the pack.
      settings: the settings for which its runs have a program of their own, or an empty text.
    """
    config = pack.points[0].config
    names = "  ".join(point.name for point in pack.points[:MAX_NAMES])
    names += f"  and {len(pack.points) - MAX_NAMES} more" if len(pack.points) > MAX_NAMES else ""
    storage = "" if config.base_storage == "auto" else f" on the {config.base_storage} base"
    storage += f" with {settings}" if settings else ""
    return (
        f"pack {pack.index}: {len(pack.points)} x {config.method.name}{storage}, {pack.steps} steps of "
        f"{pack.tokens // pack.steps:,} tokens, {'about' if pack.exact else 'at most'} {pack.bytes / 2**30:.2f} GiB "
        f"beside the base, roughly {_describe_time(pack)}: {names}"
    )


def predicted_seconds(pack: PackPlan) -> float:
    """Returns roughly how long a pack compiles and trains on this device. On a CPU compiling is not predicted."""
    if not pack.compile_seconds:
        return rough_seconds(pack.flops, pack.points[0].config.dtype)
    return pack.compile_seconds + pack.train_seconds


def _describe_time(pack: PackPlan) -> str:
    if not pack.compile_seconds:
        return f"{predicted_seconds(pack) / 60:.1f} min of training"
    lengths = "one length" if pack.lengths == "longest" else "all lengths"
    layers = "unrolled layers" if pack.layers == "unrolled" else "a loop over layers"
    compiling = f"{pack.compile_seconds:.0f} s of compiling ({lengths}, products by {pack.gemm}, {layers})"
    return f"{compiling} and {pack.train_seconds:.0f} s of training"


def _refuse_shared_folders(points: Sequence[Point]) -> None:
    for kind, values in (("name", [p.name for p in points]), ("folder", [str(p.folder.resolve()) for p in points])):
        if shared := [value for value, count in collections.Counter(values).items() if count > 1]:
            raise UserError(f"several points have the {kind} {shared[0]}; give each its own")


def _refuse_full_disk(packs: Sequence[PackPlan], home: Path, costs: Costs) -> None:
    """Raises UserError if the disk is too small for all adapters and two checkpoints of the largest pack.

    A checkpoint has four deltas: the parameters, their two moments, and the best parameters.
    """
    adapters, checkpoints = 0, 0
    for pack in packs:
        deltas = sum(size(costs.shapes(point).params) for point in pack.points)
        adapters, checkpoints = adapters + deltas, max(checkpoints, 2 * 4 * deltas)
    free = shutil.disk_usage(home).free
    if adapters + checkpoints > free:
        raise UserError(
            f"{home}: this sweep writes about {(adapters + checkpoints) / 2**20:.0f} MiB and the disk has "
            f"{free / 2**20:.0f} MiB free; choose another with hydra.sweep.dir=<folder>"
        )
