"""A process that measures cases when it is told to, so that nothing else runs while it does.

It is given a job as JSON, gets everything ready (weights, compilation), says so, and then measures the case whose
number it reads, one line after another. Each result goes to the file of rows before it says that it is done.
"""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY, DONE = "ready", "done"

Measure = Callable[[], dict[str, Any]]


def serve(job: dict[str, Any], prepare: Callable[[], list[Measure]]) -> None:
    """`prepare` returns what measures each of ``job["cases"]``; what fails leaves a row with its error."""
    rows = Path(job["rows"])
    measures = prepare()
    print(READY, flush=True)
    for line in sys.stdin:
        index = int(line)
        try:
            found = measures[index]()
        except Exception as error:  # out of memory, most likely; the next case may fit
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        append(rows, {"case": job["cases"][index], **found})
        print(DONE, flush=True)


def append(rows: Path, row: dict[str, Any]) -> None:
    """Adds a row to a JSON-lines file."""
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
