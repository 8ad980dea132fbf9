"""The tasks there are.

To add one: a folder beside `banking77` (to classify) or `e2e` (to write) with a TFDS builder and a
`load(data_dir) -> Task`, and a row in TASKS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lora_jax.data import banking77, e2e
from lora_jax.data.examples import Examples, Task
from lora_jax.errors import UserError

__all__ = ["TASKS", "Examples", "Task", "kind_of", "load_task"]


class Row(NamedTuple):
    kind: str  # as the task that is loaded says; here too, because planning needs it before there is data
    load: Callable[[Path | None], Task]


TASKS: dict[str, Row] = {
    "banking77": Row("classification", banking77.load),
    "e2e": Row("generation", e2e.load),
}


def kind_of(name: str) -> str:
    """``classification`` or ``generation``: what the task called `name` asks for. UserError if there is no such one."""
    if name not in TASKS:
        raise UserError(f"task.name={name!r}: no such task; there is {', '.join(sorted(TASKS))}")
    return TASKS[name].kind


def load_task(name: str, data_dir: str | Path | None = None) -> Task:
    """The task called `name`, its raw files read from `data_dir` instead of the copy that comes with this package.

    Raises UserError if there is no such task, or `data_dir` does not hold its files.
    """
    kind_of(name)
    return TASKS[name].load(None if data_dir is None else Path(data_dir).expanduser())
