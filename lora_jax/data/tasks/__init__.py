"""The registry of tasks.

To add one: a folder here with a TFDS builder and a `Task`, a row in TASKS, and a file in ``conf/task/``. `banking77`
is an example of a classification, `e2e` of a generation.
"""

from pathlib import Path
from typing import Any

from lora_jax.config import TaskConfig
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.arithmetic import ARITHMETIC
from lora_jax.data.tasks.banking77 import BANKING77
from lora_jax.data.tasks.banking77_mlm import BANKING77_MLM
from lora_jax.data.tasks.banking77_retrieval import BANKING77_RETRIEVAL
from lora_jax.data.tasks.cifar10 import CIFAR10
from lora_jax.data.tasks.commonsense import COMMONSENSE
from lora_jax.data.tasks.custom import CUSTOM, custom_task, refuse_columns
from lora_jax.data.tasks.dart import DART
from lora_jax.data.tasks.e2e import E2E
from lora_jax.data.tasks.emotion import EMOTION
from lora_jax.data.tasks.glue import GLUE
from lora_jax.data.tasks.gsm8k import GSM8K
from lora_jax.data.tasks.images import IMAGES
from lora_jax.data.tasks.mnist import MNIST
from lora_jax.data.tasks.nli_triplets import NLI_TRIPLETS
from lora_jax.data.tasks.samsum import SAMSUM
from lora_jax.data.tasks.stsb_embedding import STSB_EMBEDDING
from lora_jax.data.tasks.webnlg import WEBNLG, WEBNLG_SEEN, WEBNLG_UNSEEN
from lora_jax.data.tasks.wikisql import WIKISQL
from lora_jax.data.tasks.wnut17 import WNUT17
from lora_jax.errors import UserError
from lora_jax.metrics import Scoring

_ROWS: tuple[Task, ...] = (
    BANKING77,
    EMOTION,
    *GLUE.values(),
    E2E,
    WEBNLG,
    WEBNLG_SEEN,
    WEBNLG_UNSEEN,
    DART,
    SAMSUM,
    WIKISQL,
    GSM8K,
    *ARITHMETIC,
    *COMMONSENSE,
    MNIST,
    CIFAR10,
    IMAGES,
    STSB_EMBEDDING,
    NLI_TRIPLETS,
    BANKING77_RETRIEVAL,
    WNUT17,
    BANKING77_MLM,
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def find_task(config: TaskConfig) -> Task:
    """Returns the task of these settings, of which nothing is loaded yet.

    Raises UserError if there is none, or it cannot have these settings.
    """
    if config.name in CUSTOM:
        return custom_task(config)
    if config.name not in TASKS:
        raise UserError(f"task.name={config.name!r}: not a task; use {', '.join(sorted([*TASKS, *CUSTOM]))}")
    refuse_columns(config)
    task = TASKS[config.name]
    if config.validation == "test" and "retrieval" in task.evaluators:
        raise UserError(
            f"task.validation=test: must be held_out for task={task.name}, whose validation examples are queries, "
            f"which cannot be trained on"
        )
    return task


def load_data(config: TaskConfig, data_root: str | None = None) -> TaskData[Any]:
    """Loads the data of a run's task.

    Args:
      config: the task's settings. Its `data_dir` is read, if it is given, and its `validation` chooses the splits.
      data_root: else a folder that holds the tasks' folders (``Task.folder``). None: the task's default place.

    Raises:
      UserError: there is no such task, or the folder does not hold its files.
    """
    task = find_task(config)
    folder = None
    if config.data_dir is not None:
        folder = Path(config.data_dir).expanduser()
    elif data_root and task.folder:
        folder = Path(data_root).expanduser() / task.folder
    data = task.load(folder)
    return data.validate_on_test() if config.validation == "test" else data


def load_task(name: str, data_dir: str | Path | None = None) -> TaskData[Any]:
    """Loads the data of the task called `name`, from `data_dir` or else from the task's default place.

    Raises UserError if there is no such task, or `data_dir` does not hold its files.
    """
    task = find_task(TaskConfig.model_validate({"name": name, "steps": 1}))
    return task.load(None if data_dir is None else Path(data_dir).expanduser())


def scoring_of(config: TaskConfig) -> Scoring:
    """Returns the metrics of a run with these settings; UserError for names that are not a task's or a metric's."""
    return find_task(config).scoring(config)
