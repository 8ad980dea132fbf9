"""Recipes: which runs a table of the paper needs, and with which settings. Needs no JAX.

Settings are texts as a user would type them: ``method=lora rank=8 targets=qv``. Those of a run are, in order, the
recipe's, its task's, its row's, the row's for this task, with ``preset=repo`` what microsoft/LoRA has instead, those of
the scale, and those of the command line. A later value of a key replaces an earlier one.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, cast

import pydantic
import yaml
from pydantic import Field

from lora_jax.config.settings import Count, PositiveReal, Settings, Text, Whole
from lora_jax.errors import UserError, message_of, shown
from lora_jax.metrics import METRICS
from lora_jax.paper.published import published_table, published_tables

PRESETS = ("paper", "repo")
SCALES = ("full", "small", "smoke")
# Settings of the command line that do not make a run another one than the recipe's.
SAME_RUN = (
    *("data_root", "task.data_dir", "model.source", "model.unroll", "model.remat", "model.attention", "model.kernel"),
    *("compile.lengths", "compile.gemm", "compile.layers", "dtype", "eval_batch", "checkpoint_every"),
    *("log_every", "pack", "wandb.mode", "wandb.project"),
)


class Column(Settings):
    """A column of the table: a metric of a task."""

    title: Text = Field(description="the title of the paper's column")
    task: Text
    metric: Text
    split: Literal["test", "valid"] = "test"
    factor: PositiveReal = Field(1.0, description="what our metric is multiplied by, for the paper's unit")
    tolerance: PositiveReal = Field(description="the largest difference of a reproduced figure, in the paper's unit")


class Row(Settings):
    """A row of the table: a method with its settings, trained on every task."""

    name: Text
    group: str = Field("", description="the part of the table that the row stands in")
    paper: Text | None = Field(None, description="the paper's row that it is compared with")
    settings: str = ""
    tasks: Mapping[str, str] = Field({}, description="more settings, by task")
    lr: tuple[PositiveReal, ...] = Field((), description="learning rates to choose from; none: that of the settings")
    start: Mapping[str, str] = Field({}, description="by task, the task whose best adapter its runs start from")
    repo: str = Field("", description="what microsoft/LoRA has instead")
    repo_tasks: Mapping[str, str] = Field({}, description="the same, by task")

    @property
    def key(self) -> str:
        """The group and the name, which no other row has."""
        return f"{self.group} {self.name}".strip()

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return re.sub(r"[^a-z0-9.=+]+", "-", self.key.lower()).strip("-")


class Scale(Settings):
    """How a recipe is shrunk."""

    settings: str
    seeds: Count = Field(description="how many of the recipe's seeds are trained")
    rates: Count = Field(description="how many of each row's learning rates are tried, from the first on")


class Recipe(Settings):
    """A table of the paper, or one after its protocol on another model."""

    title: Text
    published: Text = Field(description="the paper's table: a file of paper/tables")
    models: tuple[Text, ...] = Field(description="the bases of the paper's table that it is compared with")
    analogue: Text | None = Field(None, description="why its figures cannot be the paper's, if they cannot")
    base_parameters: Count = Field(description="of the base that the recipe is for")
    rule: Literal["median", "mean"] = Field(description="from the scores of several seeds to one figure")
    seeds: tuple[Whole, ...] = Field(min_length=1)
    tuning_seed: Whole = Field(0, description="of the runs that choose a learning rate")
    columns: tuple[Column, ...] = Field(min_length=1)
    average: bool = Field(False, description="whether the mean over columns is a column too")
    settings: str
    repo: str = ""
    tasks: Mapping[str, str] = Field(description="the settings of each task", min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    baseline: Text | None = Field(None, description="the row of full fine-tuning")
    small: Scale
    smoke: Scale
    absent: str = Field("", description="why the paper's other rows and columns are not here")
    notes: tuple[Text, ...] = Field((), description="where the paper and its code disagree, and what to know")

    @pydantic.model_validator(mode="after")
    def _names_what_there_is(self) -> Self:
        if self.published not in published_tables():
            raise ValueError(f"published={self.published!r}: must be one of {', '.join(published_tables())}")
        rows = published_table(self.published)
        names = [row.name for row in self.rows]
        if len({row.folder for row in self.rows}) < len(names):
            raise ValueError("two rows of one group have one name, or differ in other signs than a-z 0-9 . = + alone")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline={self.baseline!r}: must be one of {', '.join(names)}")
        if unknown := set(self.models) - {row.model for row in rows.values()}:
            raise ValueError(f"models={sorted(unknown)}: must be of {sorted({row.model for row in rows.values()})}")
        for column in self.columns:
            _one_of(column.task, self.tasks, f"the column {column.title}: task")
            _one_of(column.metric, METRICS, f"the column {column.title}: metric")
            _one_of(column.title, next(iter(rows.values())).figures, "the column's title")
        for row in self.rows:
            if row.paper is not None:
                _one_of(row.paper, rows, f"the row {row.name}: paper")
            for task in (*row.tasks, *row.repo_tasks, *row.start, *row.start.values()):
                _one_of(task, self.tasks, f"the row {row.name}: task")
        return self

    def scale(self, name: str) -> Scale | None:
        """Returns how ``scale=<name>`` shrinks the recipe; None for full."""
        return None if name == "full" else cast(Scale, getattr(self, name))


def _one_of(value: str, accepted: Iterable[str], what: str) -> None:
    if value not in accepted:
        raise ValueError(f"{what}={value!r}: must be one of {', '.join(accepted)}")


def load_recipe(path: Path) -> Recipe:
    """Returns the recipe in a YAML file.

    Raises:
      UserError: there is none, or it is not a recipe.
    """
    if not path.is_file():
        others = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise UserError(f"{shown(path.stem)}: {path} is no file; use {', '.join(others) or 'a recipe of your own'}")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {message_of(error)}") from None
    except pydantic.ValidationError as error:
        reasons = [f"{'.'.join(map(str, item['loc'])) or 'recipe'}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{path}: {'; '.join(reasons)}") from None


def overrides_of(
    recipe: Recipe, row: Row, task: str, *, preset: str, scale: str, given: Sequence[str]
) -> tuple[str, ...]:
    """Returns the overrides of the runs of a row on a task, without learning rate and seed that are chosen.

    Args:
      given: the overrides of the command line.
    """
    texts = [f"task={task}", recipe.settings, recipe.tasks[task], row.settings, row.tasks.get(task, "")]
    if preset == "repo":
        texts += [recipe.repo, row.repo, row.repo_tasks.get(task, "")]
    if (shrunk := recipe.scale(scale)) is not None:
        texts.append(shrunk.settings)
    items = [item for text in texts for item in shlex.split(text)]
    return tuple(merged([*items, *given]))


def merged(overrides: Iterable[str]) -> list[str]:
    """Returns overrides of which the last of each key remains, in the place of the first."""
    by_key: dict[str, str] = {}
    for item in overrides:
        by_key[key_of(item)] = item
    return list(by_key.values())


def key_of(override: str) -> str:
    """Returns the key of an override: ``rank`` of ``+rank=8``."""
    return override.lstrip("+~").partition("=")[0]


def other_settings(given: Iterable[str]) -> list[str]:
    """Returns the overrides of the command line that make runs other than the recipe's."""
    return [item for item in given if key_of(item) not in SAME_RUN]
