"""Trains the runs of a table of the paper, plans them, and rebuilds the table from its records."""

import contextlib
import dataclasses
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lora_jax.commands.composition import CONF, compose_run
from lora_jax.commands.interruption import interruptible
from lora_jax.config import RunConfig
from lora_jax.config.point import Point, check_names
from lora_jax.errors import UserError, redact
from lora_jax.paper.files import write_table
from lora_jax.paper.protocol import Protocol, TableRun
from lora_jax.paper.recipe import PRESETS, SCALES, key_of, load_recipe, merged, other_settings
from lora_jax.paper.results import (
    COMMANDS_FILE,
    RESULTS_FILE,
    CommandRecord,
    RunResult,
    read_result,
)
from lora_jax.paper.table import build_table
from lora_jax.records import RUN_FILE, read_lines, read_run, write_lines

RECIPES = CONF / "experiment"
RUNS = "runs"  # the folder of the runs, in the table's
CHOICES = {"preset": PRESETS, "scale": SCALES}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that a command names.

    Attributes:
      name: the recipe's name, or its path.
      folder: where its runs, records and files lie.
    """

    name: str
    protocol: Protocol
    folder: Path

    @classmethod
    def of(cls, name: str, overrides: Sequence[str], out: Path) -> "Table":
        """Returns the table of a command line. `overrides` apply to every run, apart from scale and preset.

        Raises:
          UserError: there is no such recipe, scale or preset, or an override is one of those that the recipe sets.
        """
        chosen = {key: accepted[0] for key, accepted in CHOICES.items()}
        given = []
        for item in overrides:
            key, equals, value = item.partition("=")
            if not equals:
                raise UserError(f"{item}: must be key=value")
            if key_of(item) in ("seed", "lr", "base", "resume", "task", "method", "test"):
                raise UserError(f"{item}: the recipe of {name} sets {key_of(item)}; remove it")
            if key in CHOICES:
                if value not in CHOICES[key]:
                    raise UserError(f"{item}: must be one of {', '.join(CHOICES[key])}")
                chosen[key] = value
            else:
                given.append(item)
        recipe = load_recipe(RECIPES / f"{name}.yaml" if Path(name).suffix != ".yaml" else Path(name))
        protocol = Protocol(recipe, chosen["preset"], chosen["scale"], tuple(merged(given)))
        marks = [value for key, value in chosen.items() if value != CHOICES[key][0]]
        return cls(name, protocol, out / "-".join([Path(name).stem, *marks]))


def run(name: str, overrides: Sequence[str], out: Path, *, plan: bool, rebuild: bool) -> int:
    """Runs ``experiments.table``.

    Args:
      name: the recipe's name.
      overrides: scale, preset, and settings of every run.
      out: the parent of the table's folder.
      plan: whether the packs are printed, and nothing is trained.
      rebuild: whether the table is built from its records alone.

    Returns:
      The exit status: 0, or 1 if a run failed or diverged.

    Raises:
      UserError: as `Table.of`, `train` and `recorded`.
    """
    table = Table.of(name, overrides, out)
    if plan:
        print_plan(table)
        return 0
    with interruptible(lambda: "interrupted; the same command goes on where this one stopped"):
        results = recorded(table) if rebuild else train(table)
        built = build_table(
            table.name, table.protocol, results, read_lines(CommandRecord, table.folder / COMMANDS_FILE)
        )
        path = write_table(built, table.folder)
    print(path.read_text(encoding="utf-8"))
    print(f"written to {path}")
    return 0 if all(result.status == "finished" for result in results.values()) else 1


def train(table: Table) -> dict[str, RunResult]:
    """Trains the runs that are missing, one round after another, and writes their records after each.

    A round has all runs whose settings are known: the learning rates that are tried, then the seeds at the best ones,
    then the runs that start from another task's adapter. A run whose folder is gone is not trained again if
    ``results.jsonl`` has its result.

    Returns:
      The results of all runs, by name.

    Raises:
      UserError: as `run_points` and `Protocol.due`, or a recorded result is of other settings, base or data.
    """
    from lora_jax.host import start_devices
    from lora_jax.sweep.run import run_points
    from lora_jax.train.record import is_done

    start_devices()
    home, composed = table.folder / RUNS, _Composed()
    earlier = {
        result.name: result
        for result in read_lines(RunResult, table.folder / RESULTS_FILE)
        if result.status == "finished"
    }
    results: dict[str, RunResult] = {}
    begun: list[Path] = []
    with _recorded(table, begun) as record_command:
        while runs := [run for run in table.protocol.due(results) if run.name not in results]:
            points = {run.name: composed.point(run, home) for run in runs}
            check_names(points)
            missing = [run for run in runs if run.name not in earlier or (points[run.name].folder / RUN_FILE).exists()]
            begun += [points[run.name].folder for run in missing if not is_done(points[run.name].folder)]
            if not all(is_done(points[run.name].folder) for run in missing):
                run_points([points[run.name] for run in missing], home=home, group=table.folder.name)
            new = {run.name: _result(table, run) for run in missing}
            for run in runs:
                results[run.name] = new.get(run.name) or _checked(table, earlier[run.name], points[run.name])
            _refuse_mixed(table, results.values())
            write_lines(table.folder / RESULTS_FILE, (earlier | results).values())
            record_command()
    write_lines(table.folder / RESULTS_FILE, results.values())
    return results


def _checked(table: Table, result: RunResult, point: Point) -> RunResult:
    """Returns a result of ``results.jsonl``. Raises UserError if it is of other settings than `point`."""
    then, now = (
        {key_of(item): item for item in other_settings(overrides) if key_of(item) != "base"}
        for overrides in (result.overrides, point.overrides)
    )
    if changed := sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key)):
        shown = "; ".join(f"{then.get(key, f'no {key}')} and is {now.get(key, f'no {key}')} now" for key in changed)
        raise UserError(
            f"{table.folder / RESULTS_FILE}: {result.name} was trained with {shown}; choose another --out, or remove "
            f"its line to train it again"
        )
    return result


def _refuse_mixed(table: Table, results: Iterable[RunResult]) -> None:
    """Raises UserError if two runs of one task have another base or other data."""
    first: dict[str, RunResult] = {}
    for result in results:
        other = first.setdefault(result.task, result)
        for kind in ("base_fingerprint", "data_fingerprint"):
            if getattr(other, kind) != getattr(result, kind):
                raise UserError(
                    f"{table.folder / RESULTS_FILE}: {other.name} and {result.name} differ in their {kind}, so they "
                    f"cannot stand in one table; choose another --out"
                )


def recorded(table: Table) -> dict[str, RunResult]:
    """Returns the results in the table's ``results.jsonl``, by name.

    Raises:
      UserError: there are none, or a record is damaged.
    """
    results = {result.name: result for result in read_lines(RunResult, table.folder / RESULTS_FILE)}
    if not results:
        raise UserError(f"{table.folder / RESULTS_FILE}: no results to build the table from; train it first")
    return results


def print_plan(table: Table) -> None:
    """Prints the packs of a table, with their costs on this machine. Nothing is trained and nothing written."""
    import jax

    from lora_jax.host import start_devices
    from lora_jax.report.tables import duration
    from lora_jax.sweep.costs import Costs
    from lora_jax.sweep.plan import plan, separating_settings
    from lora_jax.sweep.run import describe_pack, predicted_seconds
    from lora_jax.sweep.setups import Setups

    start_devices()
    composed, runs = _Composed(), table.protocol.all_runs()
    packs = plan([composed.point(run, table.folder / RUNS) for run in runs], Costs(Setups()))
    for pack, settings in zip(packs, separating_settings(packs), strict=True):
        print(describe_pack(pack, settings))
    tuning = sum(run.stage == "tune" for run in runs)
    print(
        f"{table.folder.name} on {jax.devices()[0].device_kind}: {len(runs)} runs in {len(packs)} packs, "
        f"{sum(pack.flops for pack in packs):.2e} FLOPs, {max(pack.bytes for pack in packs) / 2**30:.2f} GiB beside "
        f"the base, roughly {duration(sum(map(predicted_seconds, packs)))} of compiling and training. {tuning} of the "
        f"runs choose a learning rate; the others are planned at the first of theirs."
    )


class _Composed:
    """Composes the settings of runs. Runs that differ in learning rate, seed or start alone are composed once."""

    def __init__(self) -> None:
        self._configs: dict[tuple[str, ...], RunConfig] = {}

    def point(self, run: TableRun, home: Path) -> Point:
        """Returns the point of `run`, in its folder below `home`. It goes on with what is there."""
        if run.overrides not in self._configs:
            self._configs[run.overrides] = compose_run(*run.overrides)
        changes: dict[str, object] = {"seed": run.seed, "resume": str(home)}
        if run.lr is not None:
            changes["lr"] = run.lr
        if run.start is not None:
            changes["base"] = str(home / run.start)
        named = [f"{key}={value}" for key, value in changes.items() if key != "resume"]
        config = self._configs[run.overrides].model_copy(update=changes)
        return Point(run.name, (home / run.name).absolute(), config, (*run.overrides, *named))


def _result(table: Table, run: TableRun) -> RunResult:
    metrics = [column.metric for column in table.protocol.recipe.columns if column.task == run.task]
    result = read_result(
        table.folder / RUNS / run.name,
        stage=run.stage,
        row=run.row,
        other_settings=other_settings(table.protocol.given),
        metrics=metrics,
    )
    assert result is not None, f"{run.name} has no summary"  # `run_points` has written it
    return result


@contextlib.contextmanager
def _recorded(table: Table, begun: Sequence[Path]) -> Iterator[Callable[[], None]]:
    """Records this command in ``commands.jsonl`` if it finishes any of the runs in `begun`, interrupted or not.

    It gives a function that writes the record as it is then, since a process may be killed before its end.
    """
    from lora_jax.train.record import is_done

    start_time, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    commands = read_lines(CommandRecord, table.folder / COMMANDS_FILE)

    def record() -> None:
        if finished := [folder for folder in begun if is_done(folder)]:
            run = read_run(finished[-1])
            command = CommandRecord(
                command=redact(shlex.join(["python", *sys.orig_argv[1:]])),
                start_time=start_time.isoformat(timespec="seconds"),
                seconds=time.monotonic() - clock,
                device=run.device,
                versions=run.versions,
                commit=run.commit,
                runs=len(finished),
            )
            write_lines(table.folder / COMMANDS_FILE, [*commands, command])

    try:
        yield record
    finally:
        record()
