"""Starts command lines in sessions of their own, watches them, and ends whatever is left of them."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.command_line import ROOT, CommandLine

# Runs a module as a command, after code that changes what the command finds.
RUN_MODULE = "\nimport runpy, sys\nrunpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
_numbers = itertools.count()


@dataclass(frozen=True)
class Done:
    """A command that has ended: its status as `subprocess` gives it, what it wrote, and how long it took."""

    status: int
    output: str
    errors: str
    seconds: float

    @property
    def text(self) -> str:
        return self.output + self.errors

    def __str__(self) -> str:
        return f"status {self.status}; {last_lines(self.errors) or last_lines(self.output) or 'no output'}"


class Running:
    """A command that runs. As a context manager it leaves no process of its session behind."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, errors: Path):
        self._process, self._output, self._errors = process, output, errors
        self._start = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._start

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def sleep(self, seconds: float, meanwhile: Callable[[], object] = int) -> bool:
        """Waits until `seconds` after the start, or until the end if that is earlier. Returns whether it still runs."""
        while not self.ended and (left := seconds - self.seconds) > 0:
            meanwhile()
            time.sleep(min(left, 0.02))
        return not self.ended

    def signal(self, number: int, *, group: bool = False) -> None:
        """Sends a signal to the process, or to its whole group, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float, meanwhile: Callable[[], object] = int) -> Done | None:
        """Waits at most `seconds` from now. Returns None if it still runs then."""
        if self.sleep(self.seconds + seconds, meanwhile):
            return None
        written = [path.read_text(errors="replace") for path in (self._output, self._errors)]
        return Done(self._process.wait(), *written, self.seconds)

    def last_lines(self) -> str:
        return last_lines(self._errors.read_text(errors="replace")) or last_lines(
            self._output.read_text(errors="replace")
        )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def start(
    command: CommandLine, arguments: Iterable[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> Running:
    """Starts Python with `arguments`, and writes what it prints to files in `folder`.

    Args:
      command: has the folder of the caches.
      arguments: of Python; see `module`.
      folder: of the output.
      environment: variables beside those of `command`.
    """
    number = next(_numbers)
    paths = [folder / f"command-{number}.{stream}" for stream in ("out", "err")]
    with paths[0].open("wb") as output, paths[1].open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=command.environment(**(environment or {})),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    return Running(process, *paths)


def module(name: str, *arguments: str | Path, prelude: str = "") -> list[str | Path]:
    """Returns Python's arguments for ``python -m experiments.<name>``, after `prelude` where there is one."""
    run = ["-c", prelude + RUN_MODULE] if prelude else ["-m"]
    return [*run, f"experiments.{name}", *arguments]


def children(pid: int) -> list[int]:
    """Returns the processes that `pid` has started, and those that they have started. Linux only."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found + [descendant for child in found for descendant in children(child)]


def last_lines(text: str, lines: int = 3) -> str:
    return " | ".join(line.strip()[:400] for line in text.strip().splitlines()[-lines:])


def stop_ignoring_signals() -> None:
    """Gives ignored signals their default again, for the commands that this process will start.

    A background job of a shell, such as CI, starts with SIGINT ignored, and what it starts inherits that.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
