"""The tasks there are.

To add one: a folder beside `banking77` with a TFDS builder and a `load(data_dir) -> Task`, and a row in TASKS.
"""

from collections.abc import Callable
from pathlib import Path

from lora_jax.data import banking77
from lora_jax.data.examples import Examples, Task
from lora_jax.errors import UserError

__all__ = ["TASKS", "Examples", "Task", "load_task"]

TASKS: dict[str, Callable[[Path | None], Task]] = {
    "banking77": banking77.load,
}


def load_task(name: str, data_dir: str | Path | None = None) -> Task:
    """The task called `name`, its raw files read from `data_dir` instead of the copy that comes with this package.

    Raises UserError if there is no such task, or `data_dir` does not hold its files.
    """
    if name not in TASKS:
        raise UserError(f"task.name={name!r}: no such task; there is {', '.join(sorted(TASKS))}")
    return TASKS[name](None if data_dir is None else Path(data_dir).expanduser())
