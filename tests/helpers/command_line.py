"""Runs small command lines in the root of the repository."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.records import read_json, read_metrics

ROOT = Path(__file__).parents[2]

# Overrides of the fixture `swept`: two evaluations, and a checkpoint between them.
SWEPT = ("rank=4,8", "steps=6", "eval_every=3", "log_every=1", "checkpoint_every=2")

# Kills the process before the nth call of a function.
KILL_BEFORE_CALL = """
import importlib, os, runpy, signal, sys
module, name, nth, command, *sys.argv[1:] = sys.argv[1:]
# A background job of a shell, such as CI, starts with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
owner = importlib.import_module(module)
*path, attribute = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, attribute), 0
def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(nth):
        os.kill(os.getpid(), getattr(signal, os.environ.get("SIGNAL", "SIGKILL")))
    return original(*args, **kwargs)
setattr(owner, attribute, killing)
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""

# Runs the module that the first argument names.
RUN = "import runpy, sys\nrunpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


@dataclass(frozen=True)
class CommandLine:
    """Runs ``python -m experiments...`` on the tiny model. All processes of a session share the caches in `home`."""

    model: Path
    home: Path

    @property
    def small(self) -> list[str]:
        """Returns overrides that make a command take seconds."""
        sizes = ["steps=4", "batch=8", "eval_batch=256", "task.buckets=[16]"]
        return [f"model.source={self.model}", "wandb.mode=disabled", *sizes]

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_", "COLUMNS"))
        }
        caches = {
            "HOME": f"{self.home}",
            "XDG_CACHE_HOME": f"{self.home}/.cache",
            "LORA_JAX_CACHE": f"{self.home}/cache",
        }
        # Caches every compiled program, not only those that take a second to compile.
        return inherited | caches | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | more

    def __call__(self, module: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run(["-m", f"experiments.{module}", *map(str, arguments)], environment)

    def sweep(self, folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a small sweep with results in `folder`. `overrides` take precedence over `small`."""
        return self("sweep", *self._with_small(overrides), f"hydra.sweep.dir={folder}", **environment)

    def killed(
        self, at: tuple[str, str, int], command: str, *overrides: str, signal: str = "SIGKILL", small: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command that gets `signal` before the nth call of a function: at = (module, name, n)."""
        function_module, name, nth = at
        arguments = [
            "-c",
            KILL_BEFORE_CALL,
            function_module,
            name,
            str(nth),
            f"experiments.{command}",
            *(self._with_small(overrides) if small else overrides),
        ]
        return self._run(arguments, {"SIGNAL": signal})

    def after(self, code: str, command: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Runs a small command in a process that runs `code` first."""
        return self._run(["-c", f"{code}\n{RUN}", f"experiments.{command}", *self._with_small(overrides)], {})

    def popen(self, *overrides: str, before: str = "", stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Starts a small sweep in the background, and discards what it prints. Its process runs `before` first."""
        command = [sys.executable, "-c", f"{before}\n{RUN}", "experiments.sweep", *self._with_small(overrides)]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment(), stdout=subprocess.DEVNULL, stderr=stderr, text=True
        )

    def _with_small(self, overrides: Sequence[str]) -> list[str]:
        if any(item.startswith("resume=") for item in overrides):
            return list(overrides)
        keys = {item.lstrip("+~").partition("=")[0] for item in overrides}
        return [*(item for item in self.small if item.partition("=")[0] not in keys), *overrides]

    def _run(self, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )


def read(path: Path) -> Any:
    """Returns the content of a JSON file, once its hash is checked."""
    return read_json(path)


def records(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl."""
    return [record.model_dump() for record in read_metrics(run)]


def runs(sweep: Path) -> list[str]:
    """Returns the names of the runs in a sweep's folder."""
    return sorted(path.parent.relative_to(sweep).as_posix() for path in sweep.rglob("run.json"))
