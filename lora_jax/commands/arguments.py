"""Prepares command-line arguments for Hydra, and chooses the folder of the results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lora_jax.commands.composition import CONF
from lora_jax.errors import UserError

SHOW_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
FOLDERS = ("resume", "hydra.sweep.dir", "hydra.run.dir")  # their values are paths, and cannot be swept
# Settings that distinguish the points of a study.
STUDY = ("method", "rank", "alpha", "targets", "lr", "seed", "base_storage", "model", "task")


def only_shows(given: Sequence[str]) -> bool:
    """Returns whether Hydra only shows something, such as its help, and runs nothing."""
    return any(item.split("=")[0] in SHOW_FLAGS for item in given)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command.

    Attributes:
      hydra: the arguments for Hydra.
      folder: the folder of the results; None if Hydra only shows something.
      new: what resumes the command, if it is a new one.
    """

    hydra: list[str]
    folder: Path | None
    new: list[str] | None


def arguments(given: Sequence[str], *, kind: str, results: Path) -> Arguments:
    """Completes the arguments of a command for Hydra, and chooses the folder of its results.

    Without a given folder, a new one is created under `results` that no other process uses. ``resume=<folder>`` uses
    that folder and its recorded arguments.

    Args:
      given: the arguments of the command line.
      kind: ``sweep`` or ``run``.
      results: the parent of new result folders.

    Raises:
      UserError: a folder is not a plain path, or the folder to resume has no results.
    """
    given = [_quote(item) for item in given]
    for item in given:
        key, _, value = item.lstrip("+").partition("=")
        if key == "experiment" and (CONF / "experiment" / f"{value}.yaml").is_file():  # a user's group may be called so
            raise UserError(f"{item}: is a recipe; train it with python -m experiments.table {value}")
        if key in FOLDERS and "${" in value:
            raise UserError(f"{item}: must be a plain path; interpolations are not resolved")
    if only_shows(given):
        return Arguments(given, None, None)
    from lora_jax.commands.folder import new_folder, recorded_command  # slow to import, and help needs neither

    if kind == "sweep":
        # hydra.mode=MULTIRUN in YAML would hide composition errors behind "Ambiguous value".
        given = [*(item for item in given if item not in ("--multirun", "-m")), "--multirun"]
    folder_key = f"hydra.{kind}.dir"
    resume = [value for item in given if item.startswith("resume=") and (value := _value(item)) not in ("", "null")]
    if resume:
        folder = Path(resume[-1])
        others = [item for item in given if not item.startswith(("resume=", "-"))]
        if others:
            raise UserError(f"resume={folder}: the recorded settings apply; remove {' '.join(others)}")
        flags = [item for item in given if item.startswith("-") and item != "--multirun"]
        recorded = [*recorded_command(folder, kind), *flags]
        return Arguments(
            _with_overrides(recorded, f"{folder_key}={quoted(folder)}", f"resume={quoted(folder)}"), folder, None
        )
    if kind == "sweep":
        given = _exclude_shared_from_names(given)
    chosen = [_value(item) for item in given if item.startswith(f"{folder_key}=")]
    new = [item for item in given if not item.startswith((f"{folder_key}=", "resume="))]
    folder = Path(chosen[-1]) if chosen else new_folder(results)
    return Arguments(_with_overrides(new, f"{folder_key}={quoted(folder)}"), folder, new)


def quoted(value: object) -> str:
    """Returns `value` as a text in quotes, as Hydra parses it."""
    return "'" + re.sub(r"(\\+)(?='|$)", lambda match: 2 * match[1], str(value)).replace("'", r"\'") + "'"


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
    return _with_overrides(given, f"hydra.job.config.override_dirname.exclude_keys=[{left_out}]")


def _quote(item: str) -> str:
    """Quotes what Hydra cannot parse: folders, and values such as ``model.source=pypi://name==1.0``."""
    key, _, value = item.partition("=")
    if key in FOLDERS:
        return f"{key}={quoted(_value(item))}"
    if item.startswith("-") or "=" not in value or any(mark in value for mark in "'\"[{("):
        return item
    return f"{key}={','.join(map(quoted, value.split(',')))}"


def _value(override: str) -> str:
    """Returns the value of an override as a text, without Hydra's quotes."""
    value = override.partition("=")[2]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        try:
            return str(OverridesParser.create().parse_override(f"key={value}").value())
        except HydraException:  # the quotes belong to the text
            pass
    return value


def _with_overrides(given: list[str], *overrides: str) -> list[str]:
    """Inserts `overrides` before the first override, or before all flags: argparse needs adjacent overrides."""
    position = next((i for i, item in enumerate(given) if "=" in item and not item.startswith("-")), 0)
    return [*given[:position], *overrides, *given[position:]]
