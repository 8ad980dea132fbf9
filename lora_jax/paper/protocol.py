"""Which runs of a recipe can be trained, given the results of the runs before them.

A row with a grid of learning rates first trains one run per rate, which are scored on the validation split alone. Then
it trains its seeds at the rate with the best validation. A row that starts a task from another task's adapter waits
until that task's seeds are trained, and starts from the run with the best validation.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from lora_jax.errors import UserError
from lora_jax.paper.recipe import Recipe, Row, merged, overrides_of
from lora_jax.paper.results import RunResult, Stage
from lora_jax.paper.selection import best_run


@dataclasses.dataclass(frozen=True)
class TableRun:
    """A run of a table.

    Attributes:
      name: the name within the table, which is the path of its folder.
      lr: its learning rate; None: that of its overrides.
      start: the name of the run whose adapter it starts from, if any.
    """

    name: str
    stage: Stage
    row: str
    task: str
    seed: int
    lr: float | None
    start: str | None
    overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The runs of a recipe at a scale.

    Attributes:
      given: the overrides of the command line.
    """

    recipe: Recipe
    preset: str = "paper"
    scale: str = "full"
    given: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that a figure is computed from."""
        shrunk = self.recipe.scale(self.scale)
        return self.recipe.seeds if shrunk is None else self.recipe.seeds[: shrunk.seeds]

    def rates(self, row: Row) -> tuple[float, ...]:
        """Returns the learning rates that `row` chooses from; none if its settings say it."""
        shrunk = self.recipe.scale(self.scale)
        return row.lr if shrunk is None else row.lr[: shrunk.rates]

    def due(self, results: Mapping[str, RunResult]) -> list[TableRun]:
        """Returns the runs whose settings `results` determine, by name. Those among `results` are included.

        Raises:
          UserError: none of the runs that choose a learning rate, or an adapter to start from, has finished.
        """
        runs = []
        for row, task in self._cells():
            start = None
            if (source := row.start.get(task)) is not None:
                trained = self.scored(row, source, results)
                if len(trained) < len(self.seeds):
                    continue
                start = _best(trained, f"{row.key} on {source}").name
            runs += self._tuning(row, task, start)
            if (rate := self.chosen_rate(row, task, results)) is not None or not self.rates(row):
                runs += self._training(row, task, rate, start)
        return runs

    def all_runs(self) -> list[TableRun]:
        """Returns every run for a plan: as if the first learning rate were chosen, and without a start."""
        return [
            run
            for row, task in self._cells()
            for run in (
                *self._tuning(row, task, None),
                *self._training(row, task, next(iter(self.rates(row)), None), None),
            )
        ]

    def chosen_rate(self, row: Row, task: str, results: Mapping[str, RunResult]) -> float | None:
        """Returns the rate with the best validation; None if its runs are not over, or there is nothing to choose.

        Raises:
          UserError: none of its runs has finished.
        """
        rates = self.rates(row)
        if len(rates) < 2:
            return rates[0] if rates else None
        runs = _over(self._tuning(row, task, None), results)
        if len(runs) < len(rates):
            return None
        return _best(runs, f"the learning rates of {row.key} on {task}").lr

    def scored(self, row: Row, task: str, results: Mapping[str, RunResult]) -> list[RunResult]:
        """Returns the results of the seeds of `row` on `task` that are over."""
        rate = self.chosen_rate(row, task, results)
        if rate is None and self.rates(row):
            return []
        return _over(self._training(row, task, rate, None), results)

    def _cells(self) -> list[tuple[Row, str]]:
        return [(row, task) for row in self.recipe.rows for task in self.recipe.tasks]

    def _tuning(self, row: Row, task: str, start: str | None) -> list[TableRun]:
        """Returns the runs that choose the learning rate. The test split is not scored."""
        if len(rates := self.rates(row)) < 2:
            return []
        overrides = merged([*self._overrides(row, task), "test=false"])
        return [self._run("tune", row, task, rate, self.recipe.tuning_seed, start, overrides) for rate in rates]

    def _training(self, row: Row, task: str, rate: float | None, start: str | None) -> list[TableRun]:
        overrides = self._overrides(row, task)
        return [self._run("train", row, task, rate, seed, start, overrides) for seed in self.seeds]

    def _overrides(self, row: Row, task: str) -> tuple[str, ...]:
        return overrides_of(self.recipe, row, task, preset=self.preset, scale=self.scale, given=self.given)

    def _run(
        self,
        stage: Stage,
        row: Row,
        task: str,
        rate: float | None,
        seed: int,
        start: str | None,
        overrides: Sequence[str],
    ) -> TableRun:
        last = f"seed={seed}" if rate is None else f"lr={rate:g},seed={seed}"
        return TableRun(
            f"{stage}/{task}/{row.folder}/{last}", stage, row.key, task, seed, rate, start, tuple(overrides)
        )


def _over(runs: Iterable[TableRun], results: Mapping[str, RunResult]) -> list[RunResult]:
    return [results[run.name] for run in runs if run.name in results]


def _best(runs: Iterable[RunResult], what: str) -> RunResult:
    best = best_run(runs)
    if best is None:
        raise UserError(f"{what}: no run has finished, so there is nothing to choose; see their summary.json")
    return best
