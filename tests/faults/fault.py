"""What a fault is, an attempt at it, and how that ended."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from faults.process import Done, Running, module, start
from faults.world import World
from helpers.command_line import CommandLine

Outcome = Literal["held", "not held", "not tried"]


class NotHeld(Exception):
    """What must hold did not."""


class NotTried(Exception):
    """This machine cannot produce the fault."""


def require(condition: object, reason: str) -> None:
    """Raises NotHeld with `reason` unless `condition` is true."""
    if not condition:
        raise NotHeld(reason)


@dataclass
class Trial:
    """One attempt at a fault, with a folder, a home with caches, and random numbers of its own.

    Attributes:
      world: the model, the data and the sweeps that all trials start from.
      folder: belongs to this trial alone.
      seed: all that is random in this trial follows from it.
      index: the number of the trial among those of its fault. A fault may use it to alternate between variants.
      notes: the random choices, such as the moment of the fault, for the report of a failure.
    """

    world: World
    folder: Path
    seed: str
    index: int
    notes: list[str] = field(default_factory=list)

    @cached_property
    def random(self) -> random.Random:
        return random.Random(self.seed)

    @cached_property
    def home(self) -> Path:
        """A copy of the warm caches, in place of the user's home."""
        return self.world.copy_home(self.folder / "home")

    @property
    def temporary(self) -> Path:
        """The folder of temporary files."""
        return self.folder / "tmp"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @cached_property
    def sweep(self) -> Path:
        """The folder of the sweep, which the trial may move elsewhere."""
        return self.folder / "sweep"

    @property
    def new_sweep(self) -> list[str]:
        """The arguments of a command that starts the sweep."""
        return [*self.world.sweep_arguments, f"hydra.sweep.dir={self.sweep}"]

    @property
    def resumed_sweep(self) -> list[str]:
        return [f"resume={self.sweep}"]

    def cold_home(self) -> None:
        """Gives this trial empty caches. Must come before the first command."""
        self.home = self.folder / "home"
        self.home.mkdir()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def moment(self, duration: float) -> float:
        """Returns a random moment between the start of a command and its end, in seconds, and notes it."""
        moment = self.random.uniform(0, duration)
        self.note(f"after {moment:.2f} s of {duration:.1f}")
        return moment

    def start(self, name: str, *arguments: str | Path, prelude: str = "", **environment: str) -> Running:
        """Starts ``python -m experiments.<name>`` in this trial's home, after `prelude` where there is one."""
        return self._start(module(name, *arguments, prelude=prelude), environment)

    def run(self, name: str, *arguments: str | Path, prelude: str = "", **environment: str) -> Done:
        """As `start`, and waits for the end."""
        with self.start(name, *arguments, prelude=prelude, **environment) as running:
            return self.wait(running)

    def python(self, code: str, *arguments: str | Path) -> Done:
        """Runs `code` in this trial's home, and waits for the end."""
        with self._start(["-c", code, *arguments], {}) as running:
            return self.wait(running)

    def _start(self, arguments: Sequence[str | Path], environment: Mapping[str, str]) -> Running:
        self.temporary.mkdir(exist_ok=True)
        command = CommandLine(self.world.model, self.home)
        return start(command, arguments, self.folder, {"TMPDIR": str(self.temporary), **environment})

    def wait(self, running: Running, seconds: float | None = None, meanwhile: Callable[[], object] = int) -> Done:
        """Waits for the end of a command, by default for as long as many undisturbed ones would take.

        Args:
          running: the command.
          seconds: the limit.
          meanwhile: is called again and again until the end.

        Raises:
          NotHeld: the command has not ended within the limit.
        """
        limit = self.world.limit if seconds is None else seconds
        done = running.wait(limit, meanwhile)
        if done is None:
            raise NotHeld(f"did not end within {limit:.0f} s; it last wrote: {running.last_lines()}")
        return done


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
      name: what goes wrong.
      must_hold: what the command line must do nevertheless.
      trials: how often the full campaign tries it.
      attempt: tries it once. It raises NotHeld if that does not hold, and NotTried if the fault cannot be produced.
    """

    name: str
    must_hold: str
    trials: int
    attempt: Callable[[Trial], None]


@dataclass(frozen=True)
class Result:
    """How one trial ended."""

    fault: str
    index: int
    seed: str
    outcome: Outcome
    reason: str
    notes: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        told = f" ({'; '.join(self.notes)})" if self.notes else ""
        replay = f"; replay with --replay '{self.seed}'" if self.outcome == "not held" else ""
        return f"{self.seed}: {self.outcome}{told}{': ' if self.reason else ''}{self.reason}{replay}"
