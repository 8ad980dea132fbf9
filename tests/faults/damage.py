"""Files of which a bit flips, or the end is missing: every kind of file that the command line writes."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

from faults import expectations
from faults.compare import difference, error_lines, finished_runs, statuses
from faults.fault import Fault, Trial, require
from faults.process import Done

# Loads every adapter of a sweep, and compares it with that of another.
LOAD = """
import sys
from pathlib import Path
import numpy as np
import lora_jax
from lora_jax.errors import UserError
import jax
sweep, original = map(Path, sys.argv[1:])
for folder in sorted(original.rglob("adapter")):
    expected = lora_jax.load_adapter(folder, base_fingerprint=None)
    try:
        loaded = lora_jax.load_adapter(sweep / folder.relative_to(original), base_fingerprint=None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    same = jax.tree.map(np.array_equal, (loaded.params, loaded.constants), (expected.params, expected.constants))
    if not all(jax.tree.leaves(same)) or loaded.config != expected.config:
        sys.exit(f"another adapter in {folder}")
"""


def damage(trial: Trial, root: Path, pattern: str) -> Path:
    """Flips a bit of a random file in `root`, or cuts its end off, in turn. Returns the file's path."""
    files = sorted(path for path in root.glob(pattern) if path.is_file() and path.stat().st_size)
    require(files, f"there is no {pattern} to damage")
    path = trial.random.choice(files)
    content = bytearray(path.read_bytes())
    if trial.index % 2:
        size = trial.random.randrange(len(content))
        trial.note(f"{path.relative_to(root)} cut from {len(content)} to {size} bytes")
        del content[size:]
    else:
        place, bit = trial.random.randrange(len(content)), trial.random.randrange(8)
        trial.note(f"{path.relative_to(root)}: bit {bit} of byte {place} of {len(content)} flipped")
        content[place] ^= 1 << bit
    path.write_bytes(content)
    return path


def names_of(path: Path, root: Path) -> list[str]:
    """Returns the texts that name a damaged file: its path, or a folder of files that belong together."""
    checkpoint = [parent for parent in path.parents if parent.parent.name == "checkpoints" or parent.name.isdigit()]
    row = f"{path.parent.relative_to(root)} unreadable: {path.name}"  # in the table of a report
    return [str(path), str(path.relative_to(root)), row, *(str(f) for f in checkpoint if root in f.parents)]


def _report(trial: Trial, pattern: str) -> None:
    """Damages a finished sweep, and builds its report."""
    shutil.copytree(trial.world.finished, trial.sweep)
    path = damage(trial, trial.sweep, pattern)
    done = trial.run("report", trial.sweep)
    expectations.same_report(trial, done, names_of(path, trial.sweep), trial.world.finished)


def _resume(trial: Trial, pattern: str) -> None:
    """Damages a killed sweep, and resumes it."""
    shutil.copytree(trial.world.killed, trial.sweep)
    path = damage(trial, trial.sweep, pattern)
    done = trial.run("sweep", *trial.resumed_sweep)
    _check_resumed(trial, done, names_of(path, trial.sweep))


def _check_resumed(trial: Trial, done: Done, names: list[str]) -> None:
    expectations.no_traceback(done)
    require("halving" not in done.text, f"it took damage for full memory: {done}")
    if done.status == 0:
        expectations.identical(trial)
        return
    require(done.status in (1, 2), f"status {done.status}: {done}")
    require(expectations.names_one(done.text, names), f"the error does not name the damaged file: {done}")
    if done.status == 2:
        require(len(error_lines(done.errors)) == 1, f"expected one line of error: {done}")
    require("diverged" not in statuses(trial.sweep).values(), "a run has diverged, which is not true")
    different = difference(
        trial.sweep, trial.world.finished, only=finished_runs(trial.sweep) - _damaged(trial), plan=False
    )
    require(different is None, f"other results: {different}")


def _damaged(trial: Trial) -> set[str]:
    """Returns the run that the damaged file belongs to, if any."""
    return {trial.notes[0].split("/")[0]}


def _load(trial: Trial, pattern: str) -> None:
    """Damages an adapter, and loads it."""
    shutil.copytree(trial.world.finished, trial.sweep)
    path = damage(trial, trial.sweep, pattern)
    done = trial.python(LOAD, trial.sweep, trial.world.finished)
    if done.status != 0:
        expectations.refused(done)
        require(
            expectations.names_one(done.errors, [str(path), str(path.parent)]), f"the error does not name it: {done}"
        )


def _start(trial: Trial, pattern: str, wheel: bool = False) -> None:
    """Damages a cache, and starts a sweep that uses it."""
    path = damage(trial, trial.cache, pattern)
    source = [f"model.source={trial.world.wheel}"] if wheel else []
    done = trial.run("sweep", *trial.new_sweep, *source, **trial.world.wheel_index)
    # The whole unpacked wheel, or the whole prepared copy of the data, is one thing.
    top = trial.cache / Path(*path.relative_to(trial.cache).parts[:2])
    expectations.no_traceback(done)
    if done.status == 0:
        expectations.identical(trial, expectations.OTHER_SETTINGS if wheel else frozenset())
    else:
        expectations.refused(done, str(top))
        expectations.nothing_trained(done, trial.sweep)


SAME_REPORT = "the report is the same, or names the file and keeps the other rows; no traceback"
SAME_RESULTS = "resume= gives the undisturbed results, or names the file; no traceback, no other number, no `diverged`"


def _fault(
    name: str, attempt: Callable[..., None], pattern: str, trials: int, must_hold: str, **options: bool
) -> Fault:
    return Fault(name, must_hold, trials, functools.partial(attempt, pattern=pattern, **options))


RECORDS = ("run.json", "metrics.jsonl", "summary.json")
FAULTS = (
    *(_fault(f"damaged {name}, then report", _report, f"*/{name}", 5, SAME_REPORT) for name in RECORDS),
    *(_fault(f"damaged {name}, then resume", _resume, f"*/{name}", 5, SAME_RESULTS) for name in RECORDS),
    _fault("damaged plan.json, then resume", _resume, "plan.json", 6, SAME_RESULTS),
    _fault("damaged multirun.yaml, then resume", _resume, "multirun.yaml", 6, SAME_RESULTS),
    _fault("damaged .hydra, then resume", _resume, "*/.hydra/*", 3, SAME_RESULTS),
    _fault("damaged checkpoint, then resume", _resume, "checkpoints/**/*", 16, SAME_RESULTS),
    _fault(
        "damaged adapter.json, then load",
        _load,
        "*/adapter/adapter.json",
        6,
        "the adapter is the same, or one line of error names the file",
    ),
    _fault(
        "damaged delta.safetensors, then load",
        _load,
        "*/adapter/delta.safetensors",
        6,
        "the adapter is the same, or one line of error names the file",
    ),
    _fault("damaged report, then report", _report, "report/*", 4, "the report is built anew, and is the same"),
    *(
        _fault(
            f"damaged {what}, then a new sweep",
            _start,
            pattern,
            8,
            "the undisturbed results, or one line of error that names the file or its folder, before anything trains",
            **options,
        )
        for what, pattern, options in (
            ("prepared data", "tfds/**/*", {}),
            ("compiled programs", "xla/**/*", {}),
            ("unpacked wheel", "pypi/**/*", {"wheel": True}),
        )
    ),
)
