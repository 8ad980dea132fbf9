"""Before Hydra: the words of a command line, and the folder of its results."""

import contextlib
import datetime
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lora_jax.config.renamed import RENAMED
from lora_jax.errors import UserError

ONLY_SHOWS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
# What tells the points of a study apart.
STUDY = ("method", "rank", "alpha", "targets", "lr", "seed", "base_storage", "model", "task")


def only_shows(given: Sequence[str]) -> bool:
    """Returns whether Hydra is only to show something, such as its help."""
    return any(item.split("=")[0] in ONLY_SHOWS for item in given)


def arguments(given: Sequence[str], *, kind: str, results: Path) -> tuple[list[str], Path | None]:
    """Returns Hydra's arguments for a ``sweep`` or a single ``run``, and the folder that its results go to.

    A new folder under `results` is made, one that no other process has; ``resume=<folder>`` takes that folder and
    what was asked for then. There is no folder where Hydra is only to show something.

    Raises UserError for a setting that has another name today, for a folder to resume that is none, and for one to
    write to that is taken.
    """
    given = [_quoted(item) for item in given]
    for item in given:
        key, _, value = item.lstrip("+").partition("=")
        if key in RENAMED:
            raise UserError(f"{item}: this setting is now {RENAMED[key]}; give {RENAMED[key]}={value}")
    if only_shows(given):
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
    """Names points by what is swept, ``rank=8``, and not by what they share, ``steps=20``.

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
def removed_if_empty(folder: Path, results: Path) -> Iterator[None]:
    """Removes a new `folder` again when no run began in it: Hydra has written to it before anything is checked."""
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
