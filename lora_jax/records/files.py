"""The files of a run's folder, read and written: whole at any moment, and by one process at a time."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import pydantic

from lora_jax.errors import UserError, shown
from lora_jax.records.atomic import write_atomically
from lora_jax.records.schema import RECORD_VERSION, SEALED_SINCE, MetricsRecord, Record, RunRecord, Summary
from lora_jax.records.sealed import CHECKSUM, seal, seal_line, unseal, unseal_line
from lora_jax.records.upgrade import upgrade_run, upgrade_summary

RUN_FILE, METRICS_FILE, SUMMARY_FILE = "run.json", "metrics.jsonl", "summary.json"

# Folders beside the runs, and inside of them, that hold no run.
_NO_RUNS = {".hydra", "report", "checkpoints", "adapter", "wandb"}

AnyRecord = TypeVar("AnyRecord", bound=Record)


def find_runs(sweep: Path, *, required: bool = True) -> list[Path]:
    """Returns the folders of the runs in `sweep`, or `sweep` itself where it is a run's folder.

    A folder that cannot be listed is among them, and so is one that lost its run.json: their readers say what is wrong.

    Raises:
      UserError: there is no run in `sweep`, and one is required.
    """
    folders: list[Path] = []

    def keep_unlisted(error: OSError) -> None:
        if isinstance(error, PermissionError) and Path(error.filename) != Path(sweep):
            folders.append(Path(error.filename))

    for folder, subfolders, files in os.walk(sweep, onerror=keep_unlisted):
        if not {RUN_FILE, SUMMARY_FILE}.isdisjoint([*files, *subfolders]):
            folders.append(Path(folder))
            subfolders.clear()
        subfolders[:] = sorted(set(subfolders) - _NO_RUNS)
    if required and not folders:
        missing = "is empty of runs" if Path(sweep).is_dir() else "is no folder"
        raise UserError(
            f"{sweep} {missing}. Expected a sweep's folder, which holds a folder for every run "
            f"(such as {Path(sweep) / 'rank=8'}) with {RUN_FILE}, {METRICS_FILE} and, once it is over, {SUMMARY_FILE}."
        )
    return folders


def read_run(folder: Path) -> RunRecord:
    """Returns ``folder/run.json``, upgraded from an earlier version where it is of one.

    Raises:
      UserError: the file is missing, is not JSON, has a value of a wrong type, or is of a newer version.
    """
    path = Path(folder) / RUN_FILE
    values = upgrade_run(_mapping(path), where=str(path))
    return parse_record(RunRecord, {**values, "name": values.get("name") or path.parent.name}, path)


def read_summary(folder: Path) -> Summary | None:
    """Returns ``folder/summary.json``, or None where there is no such file: the run is not over.

    Raises:
      UserError: as `read_run` does for a file that is there.
    """
    path = Path(folder) / SUMMARY_FILE
    if not path.exists():
        return None
    values = upgrade_summary(_mapping(path), where=str(path))
    return parse_record(Summary, {**values, "name": values.get("name") or path.parent.name}, path)


def read_metrics(folder: Path, summary: Summary | None = None) -> list[MetricsRecord]:
    """Returns the records of ``folder/metrics.jsonl``; none if there is no such file. A torn last line is left out.

    Args:
      folder: the run's folder.
      summary: the run's summary, if it is over. The file is then the one that it was written with.

    Raises:
      UserError: another line is damaged, is not JSON, or has no step or no tokens; or the file is not the summary's.
    """
    path = Path(folder) / METRICS_FILE
    content = _read(path) if path.exists() else b""
    parsed = _json_lines(content, path, torn=True)
    sealed = any(CHECKSUM in values for _, values in parsed)  # records of earlier versions have no checksums
    records = [
        parse_record(MetricsRecord, unseal_line(values, where=where, required=sealed), where)
        for where, values in parsed
    ]
    if summary and summary.metrics_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"{path} is damaged: it does not fit the hash in {SUMMARY_FILE}; restore it from a copy")
    return records


def read_lines(kind: type[AnyRecord], path: Path) -> list[AnyRecord]:
    """Returns the records that `write_lines` wrote to `path`; none if there is no such file.

    Raises:
      UserError: a line is damaged, or is no record of this kind.
    """
    lines = _json_lines(_read(path) if path.exists() else b"", path)
    return [parse_record(kind, unseal_line(values, where=where, required=True), where) for where, values in lines]


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Writes records to `path`, one a line, each with its checksum."""
    write_atomically(path, "".join(seal_line(record.to_json()) for record in records).encode())


def _json_lines(content: bytes, path: Path, *, torn: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """Returns the place of each line of `content`, as errors name it, and its JSON object.

    Args:
      torn: whether a last line that is not JSON is left out, which a killed process has written in part.
    """
    *lines, last = content.split(b"\n")
    parsed = []
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError:
            if number <= len(lines) or not torn:
                raise UserError(f"{where} is not JSON: {line[:80].decode(errors='replace')!r}") from None
            continue
        if not isinstance(values, dict):
            raise UserError(f"{where} is not a JSON object: {line[:80].decode(errors='replace')!r}")
        parsed.append((where, values))
    return parsed


def write_run(folder: Path, run: RunRecord) -> None:
    """Writes ``folder/run.json``."""
    write_json(Path(folder) / RUN_FILE, run.to_json())


def write_summary(folder: Path, summary: Summary) -> None:
    """Writes ``folder/summary.json``, with the hash of ``metrics.jsonl``: the run is over."""
    path = Path(folder) / METRICS_FILE
    digest = hashlib.sha256(_read(path)).hexdigest() if path.exists() else None
    write_json(Path(folder) / SUMMARY_FILE, summary.replace(metrics_sha256=digest).to_json())


def remove_summary(folder: Path) -> None:
    """Removes ``folder/summary.json`` if it is there: the run goes on."""
    (Path(folder) / SUMMARY_FILE).unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, without its hash. NaN and Infinity are read as Python writes them.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file cannot be read, is not JSON, or its content does not fit its hash. Records of earlier versions
        have none.
    """
    content = _read(path)
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        return values
    version = values.get("version", 1)
    if isinstance(version, int) and version > RECORD_VERSION:  # refused by its reader, which can say so
        return values
    return unseal(
        values,
        where=str(path),
        required=isinstance(version, int) and version >= SEALED_SINCE,
        advice="restore it from a copy, or remove it and resume its sweep",
    )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values` and their hash. Whenever this is interrupted, `path` holds the old content or the new."""
    write_atomically(path, (json.dumps(seal(values), indent=2) + "\n").encode())


def is_open(folder: Path) -> bool:
    """Returns whether a process on this machine is writing to the run in `folder` now."""
    try:
        with open(Path(folder) / METRICS_FILE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        pass
    return False


class MetricsFile:
    """``folder/metrics.jsonl``, open to append and locked until it is closed or its process is gone.

    Args:
      folder: the run's folder.
      keep_until: keeps the records up to this step and drops the later ones; None starts anew.

    Raises:
      UserError: another process is writing to `folder`, or an earlier record cannot be read.
    """

    def __init__(self, folder: Path, *, keep_until: int | None = None):
        path = folder / METRICS_FILE
        # Locked before it is read. The file that replaces it is another one, to be locked in its turn.
        with _open_locked(path):
            kept = []
            if keep_until is not None:
                kept = [record for record in read_metrics(folder) if record.step <= keep_until]
            write_atomically(path, "".join(map(_line, kept)).encode())
        self._file = _open_locked(path)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def append(self, record: MetricsRecord) -> None:
        """Appends one line. A process that is killed loses the line being written at most."""
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object, not {type(values).__name__}")
    return values


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def parse_record(kind: type[AnyRecord], values: Any, where: Path | str) -> AnyRecord:
    """Returns the record of this kind with `values`. Raises UserError if a value has a wrong type."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {'; '.join(map(_explained, error.errors()))}") from None


def _explained(item: Any) -> str:
    key = ".".join(map(str, _typed_part(item["loc"])))
    if item["type"] == "missing":
        return f"{key} is missing"
    message = item["msg"].removeprefix("Input should be ")
    return f"{key}={shown(item['input'])}: must be {message}" if key else f"must be {message}"


def _typed_part(location: Sequence[int | str]) -> Sequence[int | str]:
    """Drops the kinds of number that pydantic tried, which stand at the end of a location."""
    return location[:-1] if location and location[-1] in ("int", "float") else location


def _open_locked(path: Path) -> TextIO:
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


def _line(record: MetricsRecord) -> str:
    # Not mode="json": figures may be scalars of NumPy or JAX, which pydantic does not know.
    return seal_line(record.model_dump())
