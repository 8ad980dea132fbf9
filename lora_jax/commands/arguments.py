"""Prepares command-line arguments for Hydra, and chooses the folder of the results."""

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

SHOW_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
# Settings that distinguish the points of a study.
STUDY = ("method", "rank", "alpha", "targets", "lr", "seed", "base_storage", "model", "task")


def only_shows(given: Sequence[str]) -> bool:
    """Returns whether Hydra only shows something, such as its help, and runs nothing."""
    return any(item.split("=")[0] in SHOW_FLAGS for item in given)


def arguments(given: Sequence[str], *, kind: str, results: Path) -> tuple[list[str], Path | None]:
    """Completes the arguments of a command for Hydra, and chooses the folder of its results.

    Without a given folder, a new one is created under `results` that no other process uses. ``resume=<folder>`` uses
    that folder and its recorded overrides.

    Args:
      given: the arguments of the command line.
      kind: ``sweep`` or ``run``.
      results: the parent of new result folders.

    Returns:
      Hydra's arguments, and the folder, or None if Hydra only shows something.

    Raises:
      UserError: a setting has been renamed, the folder to resume has no results, or the chosen folder is not empty.
    """
    given = [_quote(item) for item in given]
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
        return _resume(given, Path(resume[-1]), kind)
    if kind == "sweep":
        given = _exclude_shared_from_names(given)
    key = f"hydra.{kind}.dir"
    chosen = [_value(item) for item in given if item.startswith(f"{key}=")]
    if chosen:
        folder = Path(chosen[-1])
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{key}={folder}: the folder is not empty; continue it with resume={folder}")
        return given, folder
    folder = _new_folder(results)
    return _with_override(given, f"{key}='{folder}'"), folder


def _exclude_shared_from_names(given: list[str]) -> list[str]:
    """Excludes shared settings, ``steps=20``, from the names of points, so that swept ones remain, ``rank=8``.

    If no override is swept (one point, or hydra.sweeper.params), the settings in STUDY remain. ``method`` always
    remains, because it distinguishes a baseline.
    """
    overrides = [item for item in given if "=" in item and not item.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return given  # Hydra reports this error with more detail
    shared = [item.key_or_group for item in parsed if not item.is_sweep_override()]
    distinguishing = ("method",) if len(shared) < len(parsed) else STUDY
    left_out = ",".join(
        ["resume", *(key for key in shared if key not in distinguishing and not key.startswith("hydra"))]
    )
    return _with_override(given, f"hydra.job.config.override_dirname.exclude_keys=[{left_out}]")


def _quote(item: str) -> str:
    """Quotes values such as ``model.source=pypi://name==1.0``, which Hydra cannot parse because of the second ``=``."""
    key, _, value = item.partition("=")
    if item.startswith("-") or "=" not in value or any(mark in value for mark in "'\",[{("):
        return item
    return f"{key}='{value}'"


def _value(override: str) -> str:
    """Returns the value of an override, without Hydra's quotes."""
    value = override.partition("=")[2]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _with_override(given: list[str], override: str) -> list[str]:
    """Inserts `override` before the first override, or before all flags: argparse needs adjacent overrides."""
    position = next((i for i, item in enumerate(given) if "=" in item and not item.startswith("-")), 0)
    return [*given[:position], override, *given[position:]]


def _resume(given: list[str], folder: Path, kind: str) -> tuple[list[str], Path]:
    """Returns the recorded arguments of the results in `folder`, and `folder`."""
    record = folder / ("multirun.yaml" if kind == "sweep" else ".hydra/hydra.yaml")
    if not record.exists():
        raise UserError(f"resume={folder}: no {kind} to continue, because {record} is missing")
    others = [item for item in given if not item.startswith(("resume=", "-"))]
    if others:
        raise UserError(f"resume={folder}: the recorded settings apply; remove {' '.join(others)}")
    recorded = OmegaConf.load(record).hydra.overrides
    flags = [item for item in given if item.startswith("-")]
    hydra = [item for item in recorded.hydra if not item.startswith(("hydra.mode=", f"hydra.{kind}.dir="))]
    task = [item for item in recorded.task if not item.startswith("resume=")]
    return [*task, *hydra, f"hydra.{kind}.dir='{folder}'", f"resume='{folder}'", *flags], folder


def _new_folder(results: Path) -> Path:
    """Creates ``results/<date>/<time>``. Commands that start in the same second get different folders."""
    now = datetime.datetime.now()
    day = results / f"{now:%Y-%m-%d}"
    for name in (f"{now:%H-%M-%S}", *(f"{now:%H-%M-%S}-{i}" for i in range(1, 1000))):
        with contextlib.suppress(FileExistsError):
            (day / name).mkdir(parents=True)
            return day / name
    raise UserError(f"{day}: a thousand folders for this second exist")


@contextlib.contextmanager
def removed_if_empty(folder: Path, results: Path) -> Iterator[None]:
    """Removes a new `folder` if no run started in it. Hydra writes to it before the settings are checked."""
    is_default, existed = results in folder.parents, folder.exists()
    empty = not existed or not any(folder.iterdir())
    try:
        yield
    finally:
        if empty and folder.is_dir() and next(folder.rglob("run.json"), None) is None:
            shutil.rmtree(folder)
            if is_default:
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()  # the folder of the day, if it is empty
            elif existed:
                folder.mkdir()
