"""One interface to the sinks of metrics: files first, W&B as a second sink of the same records.

A run's folder holds ``run.json`` (what was asked, where it ran), ``metrics.jsonl`` (one record a line) and, once the
run is over, ``summary.json``. These files are the source of truth: W&B may be off, offline or broken, and training and
the report notice nothing.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any, Literal

from lora_jax.errors import UserError

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")

_wandb_ok = True  # what fails to start once is not tried again for every other run
_online_ok: bool | None = None  # an unreachable server is waited for once, not once a run; None: not tried yet


class Tracker:
    """Writes one run's files, and the same records to W&B.

    Many may be alive at once in one process. Use it as a context manager: a body that raises leaves no
    ``summary.json`` (so the run shows as interrupted and can be resumed) and a W&B run marked as failed.

    Args:
      folder: the run's folder; made if it is not there.
      run: the content of run.json. ``run["name"]`` is the point's name, unique within `group`.
      group: the sweep; W&B groups its runs by it.
      wandb: auto, online, offline or disabled. auto is ``WANDB_MODE`` if that is set, else online if this user is
        logged in to W&B, else offline.
      project: W&B's project.
      keep_until: resume after this step: run.json is kept, and records of later steps are dropped from metrics.jsonl.
        None starts the files anew.

    Raises:
      UserError: `wandb` is none of the modes, or another process is writing to `folder`.
    """

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        *,
        group: str,
        wandb: str = "auto",
        project: str = "lora_jax",
        keep_until: int | None = None,
    ):
        mode = _mode(wandb)
        self.folder, self.name, self.group = Path(folder), run["name"], group
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(self.folder / "metrics.jsonl")
        kept = [r for r in read_metrics(self.folder) if r["step"] <= keep_until] if keep_until is not None else []
        _write_atomically(self.folder / "metrics.jsonl", "".join(_line(record) for record in kept))
        self._file.close()
        self._file = _open_locked(self.folder / "metrics.jsonl")
        if keep_until is None or not (self.folder / "run.json").exists():
            write_json(self.folder / "run.json", run)
        (self.folder / "summary.json").unlink(missing_ok=True)
        # What is resumed keeps its run.json, and so its id: W&B goes on with the same run.
        run = read_json(self.folder / "run.json")
        self.id = hashlib.sha256("\n".join([group, run["name"], run.get("started", "")]).encode()).hexdigest()[:16]
        self._wandb = None if mode == "disabled" else _start(self.folder, run, self.id, group, project, mode)

    def log(self, record: dict[str, Any]) -> None:
        """Appends `record`, which has "step" and "tokens", as one line. A kill loses the line being written at most."""
        self._file.write(_line(record))
        self._file.flush()
        if self._wandb is not None:
            self._guarded(lambda run: run.log(record))

    def finish(self, summary: dict[str, Any], adapter: Path | None = None) -> None:
        """Writes summary.json, and ends the W&B run: final figures, `adapter` as an artifact, and its exit code.

        A status other than "finished" and "stopped" (diverged, failed) gives the W&B run a non-zero exit code.
        """
        write_json(self.folder / "summary.json", summary)
        if self._wandb is not None:
            self._guarded(lambda run: run.summary.update(_flat(summary)))
            if adapter is not None:
                self._guarded(lambda run: self._log_artifact(run, adapter))
        self.close(exit_code=0 if summary["status"] in ("finished", "stopped") else 1)

    def close(self, exit_code: int = 1) -> None:
        """Closes the files and the W&B run. Alone, without `finish`, it marks the run as interrupted."""
        self._file.close()
        if self._wandb is not None:
            self._guarded(lambda run: run.finish(exit_code=exit_code))
            self._wandb = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self.close()

    def _guarded(self, action: Any) -> None:
        """`action` on the W&B run; what it raises ends W&B's part in this run, never the training."""
        if self._wandb is None:
            return
        try:
            action(self._wandb)
        except Exception as error:
            _warn_once(f"{type(error).__name__}: {error}")
            failed, self._wandb = self._wandb, None
            with contextlib.suppress(Exception):
                failed.finish(exit_code=1)

    def _log_artifact(self, run: Any, adapter: Path) -> None:
        import wandb

        name = re.sub(r"[^\w.-]+", "-", f"{self.group}-{self.name}")
        if len(name) > 128:  # W&B's limit
            name = f"{name[:111]}-{self.id}"
        artifact = wandb.Artifact(name, type="adapter")
        # "immutable" uploads from where the files lie; the default copies them to a staging folder under ~ first.
        artifact.add_dir(str(adapter), policy="immutable")
        run.log_artifact(artifact)


def read_json(path: Path) -> Any:
    """The content of a JSON file; NaN and Infinity are read as Python writes them. UserError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Writes `value` so that `path` holds either the old content or the new, whenever this is interrupted."""
    _write_atomically(path, json.dumps(value, indent=2, default=_plain) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of ``folder/metrics.jsonl``; none if there is no such file. A torn last line is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate([*lines, torn] if torn else lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number <= len(lines):
                raise UserError(f"{path}, line {number} is not JSON: {line[:80].decode(errors='replace')!r}") from None
    return records


def is_open(folder: Path) -> bool:
    """Whether a process on this machine is writing to the run in `folder` now."""
    try:
        with open(Path(folder) / "metrics.jsonl", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        pass
    return False


def _open_locked(path: Path) -> Any:
    """`path` opened to append, locked until it is closed or the process is gone, however it goes."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    for _ in range(20):  # a report that looks at this run holds the lock for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # a file system without locks
            return file
    file.close()
    raise UserError(f"another process is writing to {path.parent}; wait for it, or choose another folder")


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """NumPy's and JAX's scalars as Python's numbers, and paths as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _mode(asked: str) -> str:
    if asked not in MODES:
        raise UserError(f"wandb={asked!r} is not a way to use W&B; choose one of {', '.join(MODES)}")
    if asked != "auto":
        return asked
    if named := os.environ.get("WANDB_MODE"):
        if named not in MODES:
            raise UserError(f"the environment's WANDB_MODE={named!r} is not known here; set one of {', '.join(MODES)}")
        if named != "auto":
            return named
    return "online" if _logged_in() else "offline"


@functools.cache
def _logged_in() -> bool:
    """Whether W&B finds credentials (environment, settings, netrc); asks neither the network nor the person."""
    try:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        return wandb.login(prompt=False, verify=False)
    except Exception as error:
        _warn_once(f"{type(error).__name__}: {error}")
        return False


def _start(folder: Path, run: dict[str, Any], identity: str, group: str, project: str, mode: str) -> Any:
    """A W&B run, offline if the server cannot be reached; None if W&B does not work at all."""
    global _wandb_ok, _online_ok
    if not _wandb_ok:
        return None
    try:
        import wandb

        def start(mode: Literal["online", "offline"]) -> Any:
            wandb.setup(wandb.Settings(silent=True))
            started = wandb.init(
                project=project,
                dir=folder,
                group=group,
                name=run["name"],
                job_type="train",
                config={**run["config"], "run": {key: run[key] for key in run if key != "config"}},
                id=identity,
                resume="allow",
                reinit="create_new",
                mode=mode,
                # An upload that hangs at the end is given up: `wandb sync` can send it later, from the folder.
                settings=wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=120),
            )
            started.define_metric("tokens")
            started.define_metric("*", step_metric="tokens")
            return started

        if mode == "online" and _online_ok is not False:
            try:
                started = start("online")
                _online_ok = True
                return started
            except Exception as error:
                log.warning("W&B cannot be reached (%s); runs are recorded offline, to send with `wandb sync`", error)
                if _online_ok is None:  # no run is alive: W&B's service, which still holds the run's id, can go
                    wandb.teardown()
                _online_ok = False
        return start("offline")
    except Exception as error:
        _wandb_ok = False
        _warn_once(f"{type(error).__name__}: {error}")
        return None


@functools.cache
def _warn_once(error: str) -> None:
    log.warning("W&B failed (%s); going on with files only", error)
