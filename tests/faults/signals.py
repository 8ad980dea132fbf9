"""Signals at random moments between the start of a sweep and its end."""

import functools
import signal

from faults import expectations
from faults.compare import has_own_frame, has_traceback
from faults.fault import Fault, Trial, require
from faults.process import Done

GRACE = 15  # seconds from a signal to the end of the process
COLD = 0.25  # of the trials start without any cache, so that they compile for longer
START = 0.05  # of a command is Python's own start, in which it has its own ways to end
TWICE = 1 / 3  # of the trials send a second signal while the sweep is resumed

MUST_END = (
    "ends within 15 s with status {status} and one line `interrupted`, which names resume=<folder> if there is "
    "something to continue, and no traceback; resume= gives the undisturbed results, and no temporary file is left"
)
MUST_RESUME = "resume=<folder>, or the same command where nothing was recorded, gives the undisturbed results"


def _interrupt(trial: Trial, number: signal.Signals, group: bool = False) -> None:
    cold = trial.random.random() < COLD
    if cold:
        trial.cold_home()
        trial.note("cold caches")
    # The service of W&B is a process of the same group.
    more = ["wandb.mode=offline"] if group else []
    _disturb(trial, number, group, [*trial.new_sweep, *more], trial.world.cold_seconds if cold else trial.world.seconds)
    if trial.random.random() < TWICE and (trial.sweep / "command.json").exists():
        trial.note("again while resuming")
        _disturb(trial, number, group, trial.resumed_sweep, trial.world.seconds)
    expectations.continues(trial, expectations.OTHER_SETTINGS if group else frozenset())


def _disturb(trial: Trial, number: signal.Signals, group: bool, arguments: list[str], duration: float) -> None:
    """Sends the signal to a command at a random moment, and checks how the command ends."""
    with trial.start("sweep", *arguments) as running:
        moment = trial.moment(duration)
        running.sleep(moment)
        late = running.ended
        running.signal(number, group=group)
        done = trial.wait(running, GRACE)
    if number == signal.SIGKILL:
        return
    if late:
        expectations.ended_well(done)
    else:
        _check_end(trial, done, number, moment < START * duration)


def _check_end(trial: Trial, done: Done, number: signal.Signals, starting: bool) -> None:
    by_signal = (128 + number, -number)  # a shell shows both as the same
    if starting and not done.output and done.status in (*by_signal, 1) and not has_own_frame(done.errors):
        trial.note("Python had not started the command")
        return
    require(not has_traceback(done.text), f"a traceback: {done}")
    if "report: " in done.output and done.status in (0, *by_signal):
        return  # everything was done
    if number == signal.SIGHUP:
        require(done.status in by_signal, f"expected the status of {number.name}: {done}")
        return
    require(done.status == 128 + number, f"expected status {128 + number}: {done}")
    lines = [line for line in done.errors.splitlines() if line.startswith("interrupted")]
    recorded = (trial.sweep / "command.json").exists()
    expected = f"interrupted; continue with resume={trial.sweep}" if recorded else "interrupted"
    early = not done.output and lines == ["interrupted"]  # before the command had read its arguments
    require(early or lines == [expected], f"expected the line {expected!r}: {done}")


def _fault(name: str, number: signal.Signals, trials: int, must_hold: str, group: bool = False) -> Fault:
    return Fault(name, must_hold, trials, functools.partial(_interrupt, number=number, group=group))


FAULTS = (
    _fault("SIGKILL", signal.SIGKILL, 100, MUST_RESUME),
    _fault("SIGTERM", signal.SIGTERM, 50, MUST_END.format(status=143)),
    _fault("SIGINT", signal.SIGINT, 50, MUST_END.format(status=130)),
    _fault("SIGINT to the process group", signal.SIGINT, 10, MUST_END.format(status=130), group=True),
    _fault("SIGHUP", signal.SIGHUP, 6, f"ends within 15 s without a traceback; {MUST_RESUME}"),
)
