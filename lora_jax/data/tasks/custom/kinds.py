"""What can be learnt from the user's own data: which columns it takes, and how a run is scored."""

from dataclasses import dataclass
from typing import Literal

from lora_jax.config import TaskConfig
from lora_jax.errors import UserError

COLUMNS = ("text", "pair", "label", "messages", "id")  # settings of a task that name columns


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
      name: the name that ``task.kind`` takes, which is also the task's objective.
      needs: the settings of columns that must be given.
      accepts: those that may be given.
      evaluators: as in `Task`.
      metrics: as in `Task`.
      metric: as in `Task`: the headline metric.
      select: as in `Task`: what the validation split selects by.
    """

    name: Literal["classification", "regression", "generation", "chat"]
    needs: tuple[str, ...]
    accepts: tuple[str, ...]
    evaluators: tuple[str, ...]
    metrics: tuple[str, ...]
    metric: str
    select: str

    @property
    def generates(self) -> bool:
        """Whether texts are generated."""
        return "generation" in self.evaluators


# The loss selects, because no texts are generated while a run trains. ROUGE-L heads the table, because it suits answers
# of one word and of a page, and gives a part of the points for a part of the reference.
_TEXTS = ("loss", "perplexity", "token_accuracy", "bleu", "rougeL", "exact_match")
_ROWS = (
    Kind(
        *("classification", ("text", "label"), ("pair", "id"), ("scores",)),
        *(("accuracy", "f1", "matthews", "loss"), "accuracy", "accuracy"),
    ),
    Kind(
        *("regression", ("text", "label"), ("pair", "id"), ("scores",)),
        *(("pearson", "spearman", "mean_squared_error"), "pearson", "pearson"),
    ),
    Kind("generation", ("text", "label"), ("id",), ("scores", "generation"), _TEXTS, "rougeL", "loss"),
    Kind("chat", ("messages",), ("id",), ("scores", "generation"), _TEXTS, "rougeL", "loss"),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ROWS}


def kind_of(config: TaskConfig) -> Kind:
    """Returns the kind of task that the settings name; UserError if they name a column that it does not read."""
    kind = KINDS[config.kind or "classification"]
    allowed = (*kind.needs, *kind.accepts)
    for setting, column in columns_of(config).items():
        if setting not in allowed:
            raise UserError(
                f"task.{setting}={column!r}: task.kind={kind.name} does not read it; use "
                f"{', '.join(f'task.{name}' for name in allowed)}"
            )
    return kind


def columns_of(config: TaskConfig) -> dict[str, str]:
    """Returns the names of columns that the settings give, by setting."""
    return {setting: column for setting in COLUMNS if (column := getattr(config, setting)) is not None}
