"""Compares a train step of lora_jax with PEFT's, on models of random weights: time, memory, compilation, utilisation.

Cases are grouped in stages. All cases of a stage are prepared in parallel, with one process per side, base and set of
flags. Then they are measured in order, one at a time, with nothing else running. Each result is appended to a file of
rows at once. A case that has a row is not measured again, so an interrupted bench continues where it stopped, and
--seconds 0 makes the page from the file alone.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from lora_jax.bench import record, step_page
from lora_jax.bench.cases import LoraJaxCase, PeftCase, case_to_json, parse_typed, read_plan
from lora_jax.bench.worker import DONE, READY, append
from lora_jax.errors import UserError

DESCRIPTION = "a train step compared with PEFT's: time, memory, share of the device's ceiling"
PLAN = Path(__file__).with_name("step_h100.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, default=PLAN, help=f"stages of cases ({PLAN.name})")
    parser.add_argument("--rows", type=Path, help="the file of results (step.jsonl in --out)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the time after which no new case starts")
    parser.add_argument("--case-seconds", type=float, default=60, help="a case that takes longer is stopped (60)")
    parser.add_argument(
        "--ready-seconds", type=float, default=240, help="a process that is not ready by then is stopped (240)"
    )
    parser.add_argument(
        "--alone", action="store_true", help="compile one case after another, to time their compilation"
    )
    parser.add_argument("cases", nargs="*", metavar='"key=value ..."', help="cases instead of a plan; see cases.py")


def run(args: argparse.Namespace) -> record.Report:
    """Measures the cases that are not yet in the file of rows.

    Raises:
      UserError: a case is invalid, or no row was measured.
    """
    start_time = time.monotonic()
    stages = parse_typed(args.cases) if args.cases else read_plan(args.plan)
    rows = args.rows or args.out / "step.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    measured = {json.dumps(row["case"]) for row in read(rows) if "error" not in row}
    for number, stage in enumerate(stages):
        missing = [case for case in stage if json.dumps(case_to_json(case)) not in measured]
        if missing and time.monotonic() - start_time < args.seconds:
            print(f"stage {number + 1}/{len(stages)}: {len(missing)} cases", flush=True)
            _stage(missing, rows, args, start_time + args.seconds)
    requested = {json.dumps(case_to_json(case)) for stage in stages for case in stage}
    results = [row for row in read(rows) if json.dumps(row["case"]) in requested]
    if not results:
        raise UserError(f"{rows}: nothing was measured in --seconds {args.seconds:g}")
    platform = next((row["platform"] for row in results if "platform" in row), "unknown")
    title = "A train step, compared with PEFT's"
    return record.Report("step_vs_peft", platform, title, step_page.page(results), {"rows": results})


def read(rows: Path) -> list[dict[str, Any]]:
    """Returns the rows measured so far. It skips incomplete lines."""
    results = []
    for line in rows.read_text().splitlines() if rows.exists() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


class _Worker:
    """A process of bench/worker.py that measures `cases`."""

    def __init__(self, cases: list[LoraJaxCase | PeftCase], rows: Path, threads: int | None):
        self.cases, self.rows = [case_to_json(case) for case in cases], rows
        is_lora_jax = isinstance(cases[0], LoraJaxCase)
        module = "lora_jax.bench.ours_step" if is_lora_jax else "lora_jax.bench.peft_step"
        flags = cases[0].xla_flags if isinstance(cases[0], LoraJaxCase) else ""
        # Without preallocation, the processes of a stage share the device's memory.
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
        env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        self._cache = tempfile.TemporaryDirectory(prefix="lora_jax-torch-")  # an empty cache of compiled programs
        env["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the object)
        job = {"cases": self.cases, "rows": str(rows.absolute()), "threads": threads, "start_time": time.time()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | env,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")  # marks the end of the process

    def wait(self, word: str, until: float) -> str | None:
        """Waits for `word`. Returns None, or an error if the process ends or does not print `word` by `until`.

        In the latter case the process is killed.
        """
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.end()
                return f"not {word} in time, stopped"
            if line == word:
                return None
            if not line:
                self._process.wait()
                self._log.seek(0)
                return f"ended with status {self._process.returncode}: {self._log.read()[-600:]}"

    def measure(self, index: int, until: float) -> None:
        """Measures the case at `index`. If that fails, a row with the error is appended."""
        assert self._process.stdin is not None
        try:
            print(index, file=self._process.stdin, flush=True)
            error = self.wait(DONE, until)
        except BrokenPipeError:
            error = "its process had ended"
        if error:
            append(self.rows, {"case": self.cases[index], "error": error})

    def end(self) -> None:
        """Kills the process if it runs, and removes its temporary files."""
        self._process.kill()
        self._process.wait()
        self._cache.cleanup()


def _stage(cases: list[LoraJaxCase | PeftCase], rows: Path, args: argparse.Namespace, deadline: float) -> None:
    """Measures the cases of a stage, and starts none after `deadline`."""
    groups: dict[str, list[LoraJaxCase | PeftCase]] = {}
    for number, case in enumerate(cases):
        process_key = (
            (case.shape, case.base_storage, case.dtype, case.xla_flags) if isinstance(case, LoraJaxCase) else (number,)
        )
        groups.setdefault(repr(process_key), []).append(case)
    workers = {key: _Worker(group, rows, 1 if args.alone else None) for key, group in groups.items()}
    until = time.monotonic() + args.ready_seconds
    try:
        errors = {key: worker.wait(READY, until) for key, worker in workers.items()}
        for case in cases:
            key = next(key for key, group in groups.items() if case in group)
            index = groups[key].index(case)
            if errors[key]:
                append(rows, {"case": case_to_json(case), "error": errors[key]})
            elif time.monotonic() < deadline:
                workers[key].measure(index, time.monotonic() + args.case_seconds)
            else:
                print(f"no time left for {step_page.name_of(case_to_json(case))}", flush=True)
                continue
            print(step_page.line(read(rows)[-1]), flush=True)
            if index == len(groups[key]) - 1:
                workers[key].end()  # frees its memory for the next cases
    finally:
        for worker in workers.values():
            worker.end()
