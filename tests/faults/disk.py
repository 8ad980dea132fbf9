"""Disks that fill up, and folders that cannot be written to."""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from faults import expectations
from faults.compare import difference, error_lines, has_traceback
from faults.fault import Fault, NotTried, Trial, require
from faults.process import Done

DISK = "16m"
FULL = ("disk", "full", "space")  # one of these words tells what is wrong
# Files may have at most so many bytes: a signal that Python ignores turns into OSError EFBIG.
LIMIT_FILES = "import os, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ['FAULT_BYTES']),) * 2)"


@functools.cache
def can_mount() -> bool:
    """Returns whether this process may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mounts a small file system at `folder`.

    Raises:
      NotTried: this process may not mount.
    """
    if not can_mount():
        raise NotTried("mounting needs root")
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Takes all space that is left on `disk`."""
    size = 2**20
    with (disk / "filler").open("ab", buffering=0) as file:
        while size:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Forbids writing to `folder`: root by a mount, which ignores permissions, others by permissions."""
    if can_mount():
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    if os.geteuid() == 0:
        raise NotTried("root ignores permissions, and may not mount here")
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o700)


def _full_results(trial: Trial) -> None:
    """The disk of the results fills up at a random moment, and stays full until the command has ended."""
    disk = trial.folder / "disk"
    with small_disk(disk):
        sweep = trial.sweep = disk / "sweep"
        with trial.start("sweep", *trial.new_sweep) as running:
            running.sleep(trial.moment(trial.world.seconds))
            done = trial.wait(running, meanwhile=lambda: fill(disk))
        _check_full(done, sweep)
        (disk / "filler").unlink(missing_ok=True)
        expectations.continues(trial)


def _check_full(done: Done, sweep: Path) -> None:
    require("halving" not in done.text, f"it took a full disk for full memory: {done}")
    if done.status == 0:
        require(not has_traceback(done.text), f"a traceback: {done}")
        return  # nothing was left to be written
    way_out = "resume=" if (sweep / "multirun.yaml").exists() else ""
    expectations.refused(done, str(sweep), way_out)
    (line,) = error_lines(done.errors)
    require(any(word in line.lower() for word in FULL), f"the error does not tell of a full disk: {line}")


def _full_cache(trial: Trial) -> None:
    disk = trial.folder / "disk"
    with small_disk(disk):
        with trial.start("sweep", *trial.new_sweep, LORA_JAX_CACHE=str(disk / "cache")) as running:
            running.sleep(trial.moment(trial.world.cold_seconds / 2))
            done = trial.wait(running, meanwhile=lambda: fill(disk))
        require("halving" not in done.text, f"it took a full disk for full memory: {done}")
        if done.status == 0:
            expectations.ended_well(done)
        else:
            expectations.refused(done, str(disk / "cache"))
        (disk / "filler").unlink(missing_ok=True)
        expectations.continues(trial, LORA_JAX_CACHE=str(disk / "cache"))


def _limited_files(trial: Trial) -> None:
    size = 2 ** trial.random.randint(16, 19)  # what the command prints, which goes to a file here, is below
    trial.note(f"files of at most {size} bytes")
    done = trial.run("sweep", *trial.new_sweep, prelude=LIMIT_FILES, FAULT_BYTES=str(size))
    expectations.no_traceback(done)
    require("halving" not in done.text, f"it took a file's limit for full memory: {done}")
    if done.status == 1:
        require("failed" in done.output, f"no run is reported as failed: {done}")
    elif done.status != 0:
        expectations.refused(done)
    expectations.continues(trial)


def _read_only_results(trial: Trial) -> None:
    """A new sweep, one to resume and one to report, in turn, where nothing can be written."""
    folder = trial.folder / "disk"
    folder.mkdir()
    trial.sweep = folder / "sweep"
    new = trial.index % 3 == 0
    if not new:
        shutil.copytree(trial.world.killed, trial.sweep)
    command = ("sweep", *(trial.new_sweep if new else trial.resumed_sweep))
    if trial.index % 3 == 2:
        command = ("report", str(trial.sweep))
    trial.note(" ".join(command[:1] + command[-1:]))
    with read_only(folder):
        done = trial.run(*command)
    expectations.refused(done, str(trial.sweep))
    require(": step " not in done.output, f"it trained: {done}")
    expectations.continues(trial)


def _read_only_cache(trial: Trial) -> None:
    """The cache is warm or empty, in turn."""
    if trial.index % 2:
        trial.cold_home()
        trial.cache.mkdir()
    trial.note("empty" if trial.index % 2 else "warm")
    with read_only(trial.cache):
        _works_or_is_refused(trial, trial.cache)


def _read_only_home(trial: Trial) -> None:
    trial.cold_home()
    variables = {"LORA_JAX_CACHE": "", "XDG_CACHE_HOME": ""}
    with read_only(trial.home):
        _works_or_is_refused(trial, trial.home, **variables)


def _no_cache(trial: Trial) -> None:
    """In place of the cache there is a file, or a folder is missing, in turn."""
    place = trial.folder / "place"
    if trial.index % 2 == 0:
        place.write_text("a file")
    trial.note("missing" if trial.index % 2 else "a file")
    _works_or_is_refused(trial, place, LORA_JAX_CACHE=str(place / "cache"))


def _works_or_is_refused(trial: Trial, cache: Path, **environment: str) -> None:
    done = trial.run("sweep", *trial.new_sweep, **environment)
    if done.status == 0:
        expectations.ended_well(done)
        require(difference(trial.sweep, trial.world.finished) is None, "other results")
    else:
        expectations.refused(done, str(cache))
        expectations.nothing_trained(done, trial.sweep)


REFUSED = "one line of error that names the folder, status 2, nothing trained"
FAULTS = (
    Fault(
        "the disk of the results fills up",
        "one line of error names the folder, the full disk and resume=, status 2, no pack is halved; with space "
        "again, resume= gives the undisturbed results",
        30,
        _full_results,
    ),
    Fault(
        "the disk of the cache fills up",
        "the undisturbed results, or one line of error that names the cache, status 2; with space again, the same",
        10,
        _full_cache,
    ),
    Fault(
        "files are limited in size",
        "status 2 with one line of error, or the failed runs are reported; without the limit, resume= gives the "
        "undisturbed results",
        10,
        _limited_files,
    ),
    Fault("read-only results", f"{REFUSED}; writable again, the undisturbed results", 6, _read_only_results),
    Fault("read-only cache", f"the undisturbed results, or {REFUSED}", 4, _read_only_cache),
    Fault("read-only home", f"the undisturbed results, or {REFUSED}", 2, _read_only_home),
    Fault("no cache", f"the undisturbed results, or {REFUSED}", 2, _no_cache),
)
