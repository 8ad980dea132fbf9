"""A process that measures cases on request, so that nothing else runs during a measurement.

It gets a job as JSON, prepares weights and programs, and prints ``ready``. Then it reads numbers of cases, one per
line. For each it measures the case, appends the result to the file of rows, and prints ``done``.
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
    """Prepares a job and measures its cases on request. A case that fails gets a row with its error.

    Args:
      job: ``cases``, and ``rows``, the file of results.
      prepare: returns the functions that measure each case.
    """
    rows = Path(job["rows"])
    measures = prepare()
    print(READY, flush=True)
    for line in sys.stdin:
        index = int(line)
        try:
            result = measures[index]()
        except Exception as error:  # most likely out of memory; the next case may fit
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        append(rows, {"case": job["cases"][index], **result})
        print(DONE, flush=True)


def append(rows: Path, row: dict[str, Any]) -> None:
    """Adds a row to a JSON-lines file."""
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
