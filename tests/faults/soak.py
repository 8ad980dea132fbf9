"""A long sweep: memory, threads, open files and temporary files do not grow."""

import contextlib
import functools
import statistics
from dataclasses import astuple, dataclass
from pathlib import Path

from faults import expectations
from faults.compare import statuses
from faults.fault import Fault, NotHeld, Trial, require
from helpers.command_line import read

POINTS = ("rank=1,2,4,8", "lr=1e-4,3e-4,1e-3,3e-3,1e-2", "seed=0,1,2,3,4,5,6,7,8,9")
COUNT = 200
SIZES = ("baseline=none", "steps=2", "eval_every=2", "log_every=1", "checkpoint_every=1")
EVERY = 0.1  # seconds between two looks
BOUND = 1800.0  # seconds


@dataclass(frozen=True)
class Usage:
    """What the process holds at one moment."""

    packs: int  # checkpoints of so many packs have been begun
    bytes: int  # resident
    threads: int
    open_files: int
    temporary_files: int


# What each may grow by after the warm-up, as a share of it and beside that.
MAY_GROW = {"bytes": (0.10, 32 * 2**20), "threads": (0.10, 4), "open_files": (0.10, 4), "temporary_files": (0.0, 2)}


def _soak(trial: Trial, pack: str) -> None:
    usages: list[Usage] = []
    fixed = [
        item for item in trial.new_sweep if not item.startswith(("rank=", "steps=", "eval_", "log_", "checkpoint_"))
    ]
    with trial.start("sweep", *fixed, *POINTS, *SIZES, f"pack={pack}") as running:
        next_look = 0.0

        def look() -> None:
            nonlocal next_look
            if running.seconds >= next_look:
                next_look = running.seconds + EVERY
                with contextlib.suppress(OSError, KeyError):  # the process has just ended
                    usages.append(_usage(running.pid, trial))

        done = trial.wait(running, BOUND, look)
    expectations.ended_well(done)
    found = statuses(trial.sweep)
    require(len(found) == COUNT and set(found.values()) == {"finished"}, f"{len(found)} runs: {set(found.values())}")
    planned = [name for packed in read(trial.sweep / "plan.json")["packs"] for name in packed["runs"]]
    require(sorted(planned) == sorted(found), "plan.json does not have every point once")
    require(not list(trial.temporary.rglob("*")), f"temporary files are left: {list(trial.temporary.rglob('*'))}")
    _check_flat(trial, usages)


def _usage(pid: int, trial: Trial) -> Usage:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Usage(
        packs=len(list(trial.sweep.glob("*/run.json"))),
        bytes=int(status["VmRSS"].split()[0]) * 1024,
        threads=int(status["Threads"]),
        open_files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        temporary_files=sum(1 for _ in trial.temporary.rglob("*")),
    )


def _check_flat(trial: Trial, usages: list[Usage]) -> None:
    """Compares the last quarter of the training with the second."""
    training = [usage for usage in usages if usage.packs > 0]
    quarter = len(training) // 4
    if quarter < 4:
        raise NotHeld(f"it was looked at only {len(training)} times while it trained")
    second, last = (
        Usage(*(statistics.median_low(values) for values in zip(*map(astuple, part), strict=True)))
        for part in (training[quarter : 2 * quarter], training[-quarter:])
    )
    trial.note(f"then {second}, at last {last}")
    for name, (share, beside) in MAY_GROW.items():
        before, after = getattr(second, name), getattr(last, name)
        require(after <= before * (1 + share) + beside, f"{name} grow from {before} to {after}")


FAULTS = tuple(
    Fault(
        f"{COUNT} points, pack={pack}",
        "memory, threads, open files and temporary files are flat after the warm-up, and every point has results",
        1,
        functools.partial(_soak, pack=pack),
    )
    for pack in ("4", "auto")
)
