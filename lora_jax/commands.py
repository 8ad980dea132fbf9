"""What the commands in ``experiments/`` do around Hydra: their arguments before it, their results after it."""

import contextlib
import datetime
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.measure import Measurement

from lora_jax.config import RunConfig, parse
from lora_jax.errors import UserError
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.train.host import restart_with_huge_pages
from lora_jax.train.plan import Point

CONF = Path(__file__).parents[1] / "conf"
ONLY_SHOWS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
# What tells the points of a study apart.
STUDY = ("method", "rank", "alpha", "targets", "lr", "seed", "base_storage", "model", "task")


def run(task: Callable[[], Any], *, kind: str, results: Path) -> NoReturn:
    """What ``experiments.sweep`` and ``experiments.train`` do: `task` is Hydra's main function, `kind` as below.

    Ends the process: 0, 1 where a run failed or diverged, 2 for what the user got wrong, 130 when interrupted.
    """
    restart_with_huge_pages()
    with exit_on_user_error():
        sys.argv[1:], folder = arguments(sys.argv[1:], kind=kind, results=results)
        if folder is None:
            task()
            sys.exit(0)
        try:
            with _leaving_no_husk(folder, results):
                task()
            if kind == "sweep":
                complete(folder)
            sys.exit(finish(folder))
        except KeyboardInterrupt:
            going_on = f"; go on with it by resume={folder}" if folder.exists() else ""
            print(f"stopped{going_on}", file=sys.stderr)
            sys.exit(130)


# ---- before Hydra


def arguments(given: Sequence[str], *, kind: str, results: Path) -> tuple[list[str], Path | None]:
    """Hydra's arguments for a ``sweep`` or a single ``run``, and the folder that its results go to.

    A new folder under `results` is made, one that no other process has; ``resume=<folder>`` takes that folder and
    what was asked for then. No folder where Hydra is only to show something. Raises UserError for a folder to resume
    that is none, and for one to write to that is taken.
    """
    given = [_quoted(item) for item in given]
    if any(item.split("=")[0] in ONLY_SHOWS for item in given):
        return given, None
    if kind == "sweep":
        # hydra.mode=MULTIRUN in YAML would hide composition errors behind "Ambiguous value".
        given = [*(item for item in given if item not in ("--multirun", "-m")), "--multirun"]
    resume = [_value(item) for item in given if item.startswith("resume=")]
    if resume and resume[-1] not in ("", "null"):
        return _resumed(given, Path(resume[-1]), kind)
    if kind == "sweep":
        given = _named_by_what_varies(given)
    key = f"hydra.{kind}.dir"
    chosen = [_value(item) for item in given if item.startswith(f"{key}=")]
    if chosen:
        folder = Path(chosen[-1])
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{key}={folder}: is there already and not empty; go on with it by resume={folder}")
        return given, folder
    folder = _new_folder(results)
    return _with_override(given, f"{key}='{folder}'"), folder


def _named_by_what_varies(given: list[str]) -> list[str]:
    """Points are named by what is swept, ``rank=8``, and not by what they share, ``steps=20``.

    Where nothing is swept here (one point, or hydra.sweeper.params), by what studies are about. ``method`` always
    counts, since it tells a baseline from the rest.
    """
    overrides = [item for item in given if "=" in item and not item.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return given  # Hydra will say it better
    shared = [item.key_or_group for item in parsed if not item.is_sweep_override()]
    telling = ("method",) if len(shared) < len(parsed) else STUDY
    left_out = ",".join(["resume", *(key for key in shared if key not in telling and not key.startswith("hydra"))])
    return _with_override(given, f"hydra.job.config.override_dirname.exclude_keys=[{left_out}]")


def point_name(override_dirname: str, method: str) -> str:
    """The name of a point's folder: Hydra's, on one level, and never empty."""
    return override_dirname.replace("/", "_") or f"method={method}"


# conf/run.yaml names the folders of a sweep by it.
OmegaConf.register_new_resolver("point_name", point_name, replace=True)


def _quoted(item: str) -> str:
    """``model.source=pypi://name==1.0`` as Hydra wants it: quoted, because of the second ``=``."""
    key, _, value = item.partition("=")
    if item.startswith("-") or "=" not in value or any(mark in value for mark in "'\",[{("):
        return item
    return f"{key}='{value}'"


def _value(override: str) -> str:
    """What stands right of the ``=``, without Hydra's quotes."""
    value = override.partition("=")[2]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _with_override(given: list[str], override: str) -> list[str]:
    """argparse wants overrides in one piece: beside the first there is, or in front of all flags."""
    place = next((i for i, item in enumerate(given) if "=" in item and not item.startswith("-")), 0)
    return [*given[:place], override, *given[place:]]


def _resumed(given: list[str], folder: Path, kind: str) -> tuple[list[str], Path]:
    record = folder / ("multirun.yaml" if kind == "sweep" else ".hydra/hydra.yaml")
    if not record.exists():
        raise UserError(f"resume={folder}: no {kind} to go on with, since {record} is missing")
    others = [item for item in given if not item.startswith(("resume=", "-"))]
    if others:
        raise UserError(f"resume={folder} goes on as it was asked for; take away {' '.join(others)}")
    asked = OmegaConf.load(record).hydra.overrides
    flags = [item for item in given if item.startswith("-")]
    hydra = [item for item in asked.hydra if not item.startswith(("hydra.mode=", f"hydra.{kind}.dir="))]
    task = [item for item in asked.task if not item.startswith("resume=")]
    return [*task, *hydra, f"hydra.{kind}.dir='{folder}'", f"resume='{folder}'", *flags], folder


def _new_folder(results: Path) -> Path:
    """``results/<date>/<time>``, made now: two commands started in one second get two folders."""
    now = datetime.datetime.now()
    day = results / f"{now:%Y-%m-%d}"
    for name in (f"{now:%H-%M-%S}", *(f"{now:%H-%M-%S}-{i}" for i in range(1, 1000))):
        with contextlib.suppress(FileExistsError):
            (day / name).mkdir(parents=True)
            return day / name
    raise UserError(f"{day}: a thousand folders for this second are taken")


@contextlib.contextmanager
def _leaving_no_husk(folder: Path, results: Path) -> Iterator[None]:
    """Takes a new `folder` away again when no run began in it: Hydra has written to it before anything is checked."""
    ours, was_there = results in folder.parents, folder.exists()
    empty = not was_there or not any(folder.iterdir())
    try:
        yield
    finally:
        if empty and folder.is_dir() and next(folder.rglob("run.json"), None) is None:
            shutil.rmtree(folder)
            if ours:
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()  # that day's first
            elif was_there:
                folder.mkdir()


# ---- within Hydra


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed settings as plain data, without Hydra's own."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        settings = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def compose_run(*overrides: str) -> RunConfig:
    """The settings that the same overrides would give on the command line: ``compose_run("rank=4", "targets=qv")``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(plain(compose("run", list(overrides))))


def note_point(config: DictConfig) -> Point:
    """The point that Hydra has composed: its name, folder and settings."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweeping = hydra.mode == RunMode.MULTIRUN
    name = folder.relative_to(Path(hydra.sweep.dir).absolute()).as_posix() if sweeping else folder.name
    overrides = tuple(item for item in hydra.overrides.task if not item.startswith("resume="))
    return Point(name, folder, parse(plain(config)), overrides)


def train(config: DictConfig) -> float:
    """Trains the one run that Hydra has composed; its best validation metric, or nan."""
    with exit_on_user_error():
        from lora_jax.train.sweep import run_points

        point = note_point(config)
        hydra = HydraConfig.get()
        group = Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else point.name
        (summary,) = run_points([point], home=point.folder, group=group)
        score = summary.score("valid")
        return float("nan") if score is None else score


# ---- after Hydra


def complete(sweep: Path) -> None:
    """Trains the baselines that a sweep still lacks, as one does whose launcher knows nothing of them."""
    from lora_jax.train.baseline import baselines
    from lora_jax.train.sweep import run_points

    asked = OmegaConf.load(sweep / "multirun.yaml").hydra
    if asked.launcher._target_.endswith(".PackedLauncher"):
        return
    # What was interrupted is not held: it goes on.
    rows = [row for row in load_rows(sweep) if row.status != "interrupted"]
    left_out = asked.job.config.override_dirname.exclude_keys
    own = [f"file://{source.path}" for source in asked.runtime.config_sources if source.provider == "command-line"]
    with initialize_config_dir(str(CONF), version_base="1.3"):

        def settings(overrides: Sequence[str]) -> RunConfig:
            return parse(plain(compose("sweep", [*overrides, f"resume='{sweep}'", f"hydra.searchpath={own}"])))

        held = [(row.run.overrides, settings(row.run.overrides)) for row in rows]
        points = []
        for overrides in baselines(held, settings):
            telling = sorted(item for item in overrides if item.lstrip("+").partition("=")[0] not in left_out)
            name = point_name(",".join(telling), "full")
            points.append(Point(name, (sweep / name).absolute(), settings(overrides), overrides))
    if points:
        run_points(points, home=sweep, group=sweep.name)


def finish(folder: Path) -> int:
    """Builds the report, prints the table, and gives the exit status: 1 if a run failed or diverged."""
    page = build_report(folder)
    rows = load_rows(folder)
    table, console = terminal_table(rows), Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    # A file takes it whole; a terminal that is too narrow had better wrap lines than words, up to a point.
    console.width = max(console.width, min(needed, 120) if console.is_terminal else needed)
    console.print(table)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    return 0 if all(row.status in ("finished", "stopped") for row in rows) else 1


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a UserError into its message and exit status 2: no traceback, since nothing is broken."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
