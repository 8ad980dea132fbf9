"""Other processes on the same folders, and a clock that jumps."""

import contextlib
import math
import shutil

from faults import expectations
from faults.compare import difference
from faults.fault import Fault, Trial, require
from faults.process import Done
from helpers.command_line import read, records, runs

APART = 1.0  # seconds at most between the starts of two processes

# Shifts the clock by up to half a day, back or forth, at every hundredth look at it on average.
JUMPING_CLOCK = """
import datetime, os, random, time
_random, _shift, _time = random.Random(os.environ["FAULT_SEED"]), 0.0, time.time
def _now():
    global _shift
    if _random.random() < 0.01:
        _shift = _random.uniform(-12 * 3600, 12 * 3600)
    return _time() + _shift
class _Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(_now(), tz)
    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(_now(), datetime.UTC).replace(tzinfo=None)
    @classmethod
    def today(cls):
        return cls.now()
time.time, time.time_ns, datetime.datetime = _now, lambda: int(_now() * 1e9), _Jumping
"""


def _two_sweeps(trial: Trial) -> None:
    trial.cold_home()
    one, other = trial.folder / "sweep", trial.folder / "other"
    apart = trial.random.uniform(0, APART)
    trial.note(f"{apart:.2f} s apart")
    arguments = trial.world.sweep_arguments
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(trial.start("sweep", *arguments, f"hydra.sweep.dir={one}"))
        first.sleep(apart)
        second = stack.enter_context(trial.start("sweep", *arguments, f"hydra.sweep.dir={other}"))
        ended = [trial.wait(first), trial.wait(second)]
    for done in ended:
        expectations.ended_well(done)
    for sweep in (one, other):
        different = difference(sweep, trial.world.finished)
        require(different is None, f"{sweep.name}: other results: {different}")


def _two_resumes(trial: Trial) -> None:
    shutil.copytree(trial.world.killed, trial.sweep)
    apart = trial.random.uniform(0, APART)
    trial.note(f"{apart:.2f} s apart")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(trial.start("sweep", *trial.resumed_sweep))
        first.sleep(apart)
        second = stack.enter_context(trial.start("sweep", *trial.resumed_sweep))
        ended = sorted([trial.wait(first), trial.wait(second)], key=lambda done: done.status)
    expectations.ended_well(ended[0])
    expectations.refused(ended[1], str(trial.sweep), "is in use by process")
    expectations.identical(trial)


def _clock(trial: Trial) -> None:
    arguments = (trial.new_sweep, trial.resumed_sweep)[trial.index % 2]
    if trial.index % 2:
        shutil.copytree(trial.world.killed, trial.sweep)
    done = trial.run("sweep", *arguments, prelude=JUMPING_CLOCK, FAULT_SEED=trial.seed)
    expectations.ended_well(done)
    expectations.identical(trial)
    for name in runs(trial.sweep):
        _check_durations(trial, name, done)


def _check_durations(trial: Trial, name: str, done: Done) -> None:
    """The durations of a run are not negative, and not longer than its two commands together."""
    summary, longest = read(trial.sweep / name / "summary.json"), done.seconds + trial.world.limit
    for key in ("seconds", "compile_seconds"):
        require(0 <= summary[key] <= longest, f"{name}: {key}={summary[key]}")
    speeds = [
        summary["tokens_per_s"],
        *(record.get("train/tokens_per_s", 1.0) for record in records(trial.sweep / name)),
    ]
    require(all(math.isfinite(speed) and speed > 0 for speed in speeds), f"{name}: tokens per second {speeds}")


FAULTS = (
    Fault("two sweeps at once on a cold cache", "both give the undisturbed results", 10, _two_sweeps),
    Fault(
        "two resumes of one folder at once",
        "one gives the undisturbed results; the other ends with status 2 and one line that names the folder and "
        "another process",
        15,
        _two_resumes,
    ),
    Fault(
        "the clock jumps by hours",
        "the undisturbed results; durations are not negative and not longer than the command took",
        10,
        _clock,
    ),
)
