"""A table of our figures beside the paper's, with differences and verdicts. Needs no JAX."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lora_jax.paper.protocol import Protocol
from lora_jax.paper.published import Figure, PublishedRow, published_table
from lora_jax.paper.recipe import Column, Row
from lora_jax.paper.results import CommandRecord, RunResult
from lora_jax.paper.selection import SeedFigure, summarise

Verdict = Literal["reproduced", "not reproduced", "analogue", "not run"]
AVERAGE = "Avg"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure of ours beside one of the paper's. Either may be missing.

    Attributes:
      tolerance: the largest difference of a reproduced figure.
    """

    ours: SeedFigure | None
    paper: Figure | None
    tolerance: float
    verdict: Verdict

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None if either is missing."""
        return None if self.ours is None or self.paper is None else self.ours.value - self.paper.value


@dataclasses.dataclass(frozen=True)
class Gap:
    """The difference of a figure to full fine-tuning's, of the same base: ours, and the paper's.

    The spread of ours is the sample standard deviation of the differences of runs with equal seeds.
    """

    ours: SeedFigure | None
    paper: float | None


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
      paper: the paper's row that it is compared with, if there is one.
      trainable: parameters that train, without a classifier's head.
      cells: by the title of the column.
      gaps: differences to the recipe's baseline, by the title of the column; none for the baseline itself.
      rates: by task, the learning rate that was chosen, and those that it was chosen from.
    """

    row: Row
    paper: PublishedRow | None
    trainable: int | None
    cells: Mapping[str, Cell]
    gaps: Mapping[str, Gap]
    rates: Mapping[str, tuple[float, tuple[float, ...]]]

    @property
    def verdict(self) -> Verdict:
        """That of the row: reproduced if each figure that the paper has is."""
        verdicts = {cell.verdict for cell in self.cells.values() if cell.paper is not None}
        for verdict in ("analogue", "not reproduced", "not run"):
            if verdict in verdicts:
                return verdict
        return "reproduced" if verdicts else "analogue"


@dataclasses.dataclass(frozen=True)
class BuiltTable:
    """What the files of a table say.

    Attributes:
      analogue: why its figures cannot be the paper's; none if they can.
      absent: the paper's rows that have no counterpart here.
      missing: how many runs are not over.
    """

    name: str
    protocol: Protocol
    analogue: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    absent: tuple[PublishedRow, ...]
    missing: int
    results: tuple[RunResult, ...]
    commands: tuple[CommandRecord, ...]


def build_table(
    name: str, protocol: Protocol, results: Mapping[str, RunResult], commands: Sequence[CommandRecord]
) -> BuiltTable:
    """Builds a table from the results of its runs.

    Args:
      name: the recipe's name.
      protocol: the recipe, and the scale of the runs.
      results: the runs that are over, by name.
      commands: the commands that trained them.
    """
    recipe = protocol.recipe
    published = published_table(recipe.published)
    reasons = analogue_reasons(protocol, results.values())
    lines = [_line(protocol, row, published.get(row.paper or ""), results, bool(reasons)) for row in recipe.rows]
    if (baseline := next((line for line in lines if line.row.name == recipe.baseline), None)) is not None:
        lines = [dataclasses.replace(line, gaps=_gaps(protocol, line, baseline, results)) for line in lines]
    compared = {line.paper.name for line in lines if line.paper is not None}
    absent = [row for row in published.values() if row.model in recipe.models and row.name not in compared]
    titles = [column.title for column in recipe.columns]
    return BuiltTable(
        name=name,
        protocol=protocol,
        analogue=tuple(reasons),
        columns=(*titles, AVERAGE) if recipe.average else tuple(titles),
        lines=tuple(lines),
        absent=tuple(absent),
        missing=len(protocol.all_runs()) - len(results),
        results=tuple(results.values()),
        commands=tuple(commands),
    )


def analogue_reasons(protocol: Protocol, results: Iterable[RunResult]) -> list[str]:
    """Returns why the figures of these runs cannot be the paper's; none if they can."""
    recipe = protocol.recipe
    runs = list(results)
    reasons = [recipe.analogue] if recipe.analogue else []
    if (shrunk := recipe.scale(protocol.scale)) is not None:
        reasons.append(
            f"scale={protocol.scale}: {shrunk.settings or 'the settings of the recipe'}, {len(protocol.seeds)} of "
            f"{len(recipe.seeds)} seeds, at most {shrunk.rates} learning rates each"
        )
    if other := sorted({item for run in runs for item in run.other_settings}):
        reasons.append(f"settings of the command line: {' '.join(other)}")
    sizes = {run.base_parameters for run in runs} - {recipe.base_parameters}
    if sizes:
        found = ", ".join(f"{size:,}" for size in sorted(size or 0 for size in sizes))
        reasons.append(f"the base has {found} parameters, not {recipe.base_parameters:,}")
    return reasons


def _line(
    protocol: Protocol, row: Row, paper: PublishedRow | None, results: Mapping[str, RunResult], analogue: bool
) -> Line:
    recipe = protocol.recipe
    runs = {task: protocol.scored(row, task, results) for task in recipe.tasks}
    cells = {column.title: _cell(column, runs[column.task], paper, recipe.rule, analogue) for column in recipe.columns}
    if recipe.average:
        cells[AVERAGE] = _average(cells, recipe.columns, paper, analogue)
    counts = [
        run.trainable if run.adapter_parameters is None else run.adapter_parameters for r in runs.values() for run in r
    ]
    rates = {}
    for task, scored in runs.items():
        rate = protocol.chosen_rate(row, task, results) or next((run.lr for run in scored), None)
        if rate is not None:
            rates[task] = rate, protocol.rates(row)
    return Line(row, paper, counts[0] if counts else None, cells, {}, rates)


def _cell(column: Column, runs: Sequence[RunResult], paper: PublishedRow | None, rule: str, analogue: bool) -> Cell:
    published = None if paper is None else paper.figures.get(column.title)
    return _compared(summarise(list(_scores(column, runs).values()), rule), published, column.tolerance, analogue)


def _scores(column: Column, runs: Sequence[RunResult]) -> dict[int, float]:
    """Returns the score of each run that has finished, by its seed, in the paper's unit."""
    figures = {run.seed: run.test if column.split == "test" else run.valid for run in runs if run.status == "finished"}
    return {seed: column.factor * figure[column.metric] for seed, figure in figures.items() if column.metric in figure}


def _gaps(protocol: Protocol, line: Line, baseline: Line, results: Mapping[str, RunResult]) -> dict[str, Gap]:
    if line.row is baseline.row:
        return {}
    paper = _paper_baseline(protocol, line.paper)
    gaps = {}
    for column in protocol.recipe.columns:
        one, other = (_scores(column, protocol.scored(row.row, column.task, results)) for row in (line, baseline))
        paired = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
        gaps[column.title] = Gap(
            _less(line, baseline, column.title, summarise(paired, "mean")), _paper_gap(line, paper, column.title)
        )
    if protocol.recipe.average:
        theirs = [gap.paper for gap in gaps.values() if gap.paper is not None]
        mean = statistics.fmean(theirs) if len(theirs) == len(gaps) else None
        gaps[AVERAGE] = Gap(_less(line, baseline, AVERAGE, None), mean)
    return gaps


def _paper_baseline(protocol: Protocol, row: PublishedRow | None) -> PublishedRow | None:
    """Returns the paper's row of full fine-tuning on the base of `row`."""
    rows = published_table(protocol.recipe.published).values()
    return next((other for other in rows if row and other.model == row.model and " FT*" in other.name), None)


def _less(line: Line, baseline: Line, title: str, paired: SeedFigure | None) -> SeedFigure | None:
    one, other = line.cells[title].ours, baseline.cells[title].ours
    if one is None or other is None:
        return None
    spread, seeds = (None, min(one.seeds, other.seeds)) if paired is None else (paired.spread, paired.seeds)
    return SeedFigure(one.value - other.value, spread, seeds)


def _paper_gap(line: Line, baseline: PublishedRow | None, title: str) -> float | None:
    if line.paper is None or baseline is None or title not in line.paper.figures or title not in baseline.figures:
        return None
    return line.paper.figures[title].value - baseline.figures[title].value


def _average(cells: Mapping[str, Cell], columns: Sequence[Column], paper: PublishedRow | None, analogue: bool) -> Cell:
    """Returns the mean over columns. The paper's is over the same columns, not over all that it has."""
    ours = [cell.ours for cell in cells.values() if cell.ours is not None]
    theirs = [cell.paper for cell in cells.values() if cell.paper is not None]
    mean = SeedFigure(statistics.fmean(f.value for f in ours), None, min(f.seeds for f in ours)) if ours else None
    whole = len(ours) == len(cells)
    paper_mean = Figure(statistics.fmean(f.value for f in theirs)) if len(theirs) == len(cells) else None
    tolerance = statistics.fmean(column.tolerance for column in columns)
    return _compared(mean if whole else None, paper_mean, tolerance, analogue)


def _compared(ours: SeedFigure | None, paper: Figure | None, tolerance: float, analogue: bool) -> Cell:
    if ours is None:
        verdict: Verdict = "not run"
    elif analogue or paper is None:
        verdict = "analogue"
    else:
        verdict = "reproduced" if abs(ours.value - paper.value) <= tolerance else "not reproduced"
    return Cell(ours, paper, tolerance, verdict)
