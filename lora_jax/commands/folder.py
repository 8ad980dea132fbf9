"""The folder of a command's results: chosen, locked, and marked with the command that can be resumed."""

import contextlib
import datetime
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_jax.errors import UserError
from lora_jax.records import (
    LOCK_FILE,
    RECORD_VERSION,
    RUN_FILE,
    has_lock,
    locked,
    read_json,
    remove_temporaries,
    write_json,
)

COMMAND_FILE = "command.json"


def new_folder(results: Path) -> Path:
    """Creates ``results/<date>/<time>``. Commands that start in the same second get different folders."""
    now = datetime.datetime.now()
    day = results / f"{now:%Y-%m-%d}"
    for name in (f"{now:%H-%M-%S}", *(f"{now:%H-%M-%S}-{i}" for i in range(1, 1000))):
        with contextlib.suppress(FileExistsError):
            (day / name).mkdir(parents=True)
            return day / name
    raise UserError(f"{day}: a thousand folders for this second exist")


@contextlib.contextmanager
def claimed(folder: Path, *, kind: str, new: Sequence[str] | None, results: Path) -> Iterator[None]:
    """Locks `folder` for this process. A new command is recorded there, and leaves nothing if it starts no run.

    Args:
      folder: the folder of the command's results.
      kind: ``sweep`` or ``run``.
      new: the arguments of a new command, for Hydra; None for a command that is resumed.
      results: the parent of folders that are chosen by date.

    Raises:
      UserError: another process uses the folder, or a new command's folder is not empty.
    """
    existed = folder.exists()
    if existed and not folder.is_dir():
        raise UserError(f"hydra.{kind}.dir={folder}: must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        remove_temporaries(folder)
        if new is None:
            yield
            return
        if any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise UserError(f"hydra.{kind}.dir={folder}: the folder is not empty; continue it with resume={folder}")
        try:
            write_json(folder / COMMAND_FILE, {"version": RECORD_VERSION, "kind": kind, "arguments": list(new)})
            yield
        finally:
            if next(folder.rglob(RUN_FILE), None) is None and has_lock(folder):
                _remove(folder, results, existed)


def recorded_command(folder: Path, kind: str) -> list[str]:
    """Returns the arguments of the command that began in `folder`.

    Raises:
      UserError: there is none of this kind, or its record is damaged.
    """
    file = folder / COMMAND_FILE
    if not file.is_file():
        raise UserError(f"resume={folder}: no {kind} to continue, because {file} is missing")
    command = read_json(file)
    try:
        recorded_kind, arguments = command["kind"], command["arguments"]
    except (KeyError, TypeError):
        raise UserError(f"resume={folder}: {file} is not the record of a command") from None
    if recorded_kind != kind:
        raise UserError(
            f"resume={folder}: it is a {recorded_kind}; continue it with experiments.{_SCRIPTS[recorded_kind]}"
        )
    return list(arguments)


_SCRIPTS = {"sweep": "sweep", "run": "train"}


def _remove(folder: Path, results: Path, existed: bool) -> None:
    """Removes what a command wrote to `folder`, and the folder too unless the user made it."""
    is_default = results in folder.parents
    for path in folder.iterdir():
        if path.name != LOCK_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if is_default or not existed:
        shutil.rmtree(folder)
    if is_default:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # the folder of the day, if it is empty
