"""One train step of ours beside PEFT's, on models of random weights: time, memory, compilation, share of the ceiling.

Cases come in stages. Everything in a stage gets ready side by side, each side, base and set of flags in a process of
its own; then its cases are measured one after another, in their order, with nothing else running. Each result is
appended to a file of rows at once; a case that is there already is not measured again, so that a cut bench goes on
where it was, and --seconds 0 makes the page from the file alone.
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
from lora_jax.bench.cases import Ours, Peft, described, parse_typed, read_plan
from lora_jax.bench.worker import DONE, READY, append
from lora_jax.errors import UserError

DESCRIPTION = "a train step beside PEFT's: time, memory, share of the device's ceiling"
PLAN = Path(__file__).with_name("step_h100.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, default=PLAN, help=f"stages of cases ({PLAN.name})")
    parser.add_argument("--rows", type=Path, help="the file of results (step.jsonl in --out)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these, no new case is started")
    parser.add_argument("--case-seconds", type=float, default=60, help="a case that takes longer is given up (60)")
    parser.add_argument("--ready-seconds", type=float, default=240, help="a process not ready by then is ended (240)")
    parser.add_argument("cases", nargs="*", metavar='"key=value ..."', help="cases in place of a plan; see cases.py")


def run(args: argparse.Namespace) -> record.Report:
    """Measures what is not yet in the file of rows. Raises UserError for cases that are none."""
    began = time.monotonic()
    stages = parse_typed(args.cases) if args.cases else read_plan(args.plan)
    rows = args.rows or args.out / "step.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    have = {json.dumps(row["case"]) for row in read(rows) if "error" not in row}
    for number, stage in enumerate(stages):
        missing = [case for case in stage if json.dumps(described(case)) not in have]
        if missing and time.monotonic() - began < args.seconds:
            print(f"stage {number + 1}/{len(stages)}: {len(missing)} cases", flush=True)
            _stage(missing, rows, args, began + args.seconds)
    wanted = {json.dumps(described(case)) for stage in stages for case in stage}
    found = [row for row in read(rows) if json.dumps(row["case"]) in wanted]
    if not found:
        raise UserError(f"{rows}: nothing was measured in --seconds {args.seconds:g}")
    platform = next((row["platform"] for row in found if "platform" in row), "unknown")
    title = "A train step, beside PEFT's"
    return record.Report("step_vs_peft", platform, title, step_page.page(found), {"rows": found})


def read(rows: Path) -> list[dict[str, Any]]:
    """What was measured so far; a line that was cut off counts as nothing."""
    found = []
    for line in rows.read_text().splitlines() if rows.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


class _Worker:
    """A process of bench/worker.py, and the numbers that its cases have in their stage."""

    def __init__(self, cases: list[Ours | Peft], rows: Path):
        self.cases, self.rows = [described(case) for case in cases], rows
        ours = isinstance(cases[0], Ours)
        module = "lora_jax.bench.ours_step" if ours else "lora_jax.bench.peft_step"
        flags = cases[0].xla_flags if isinstance(cases[0], Ours) else ""
        # What one process reserves and does not use, the others of its stage lack.
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
        env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        self._cache = tempfile.TemporaryDirectory(prefix="lora_jax-torch-")  # nothing is compiled yet
        env["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the object)
        job = {"cases": self.cases, "rows": str(rows.absolute()), "began": time.time()}
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
        self._lines.put("")  # it has ended

    def wait(self, word: str, until: float) -> str | None:
        """Waits for `word`; what went wrong if it does not come by `until`, in which case the process is ended."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.end()
                return f"not {word} in time, and ended"
            if line == word:
                return None
            if not line:
                self._process.wait()
                self._log.seek(0)
                return f"ended with status {self._process.returncode}: {self._log.read()[-600:]}"

    def measure(self, index: int, until: float) -> None:
        """Has the case of that number measured; if it does not come to an end, there is a row that says why."""
        assert self._process.stdin is not None
        try:
            print(index, file=self._process.stdin, flush=True)
            wrong = self.wait(DONE, until)
        except BrokenPipeError:
            wrong = "its process had ended"
        if wrong:
            append(self.rows, {"case": self.cases[index], "error": wrong})

    def end(self) -> None:
        """Ends the process, if it has not, and lets go of what it used."""
        self._process.kill()
        self._process.wait()
        self._cache.cleanup()


def _stage(cases: list[Ours | Peft], rows: Path, args: argparse.Namespace, deadline: float) -> None:
    groups: dict[str, list[Ours | Peft]] = {}
    for number, case in enumerate(cases):
        own = (case.shape, case.base, case.dtype, case.xla_flags) if isinstance(case, Ours) else (number,)
        groups.setdefault(repr(own), []).append(case)
    workers = {key: _Worker(group, rows) for key, group in groups.items()}
    until = time.monotonic() + args.ready_seconds
    try:
        wrong = {key: worker.wait(READY, until) for key, worker in workers.items()}
        for case in cases:
            key = next(key for key, group in groups.items() if case in group)
            index = groups[key].index(case)
            if wrong[key]:
                append(rows, {"case": described(case), "error": wrong[key]})
            elif time.monotonic() < deadline:
                workers[key].measure(index, time.monotonic() + args.case_seconds)
            else:
                print(f"no time left for {step_page.name_of(described(case))}", flush=True)
                continue
            print(step_page.line(read(rows)[-1]), flush=True)
            if index == len(groups[key]) - 1:
                workers[key].end()  # so that its memory is free for what is measured next
    finally:
        for worker in workers.values():
            worker.end()
