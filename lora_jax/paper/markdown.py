"""table.md: what was reproduced, what was not and why, for a reader who knows the paper."""

import collections
from collections.abc import Mapping, Sequence

from lora_jax.paper.published import Figure
from lora_jax.paper.results import RunResult
from lora_jax.paper.selection import SeedFigure, best_epoch
from lora_jax.paper.table import BuiltTable, Cell, Line
from lora_jax.report.tables import UNKNOWN, duration, markdown_table, parameters


def markdown(table: BuiltTable) -> str:
    """Returns the content of table.md."""
    parts = [f"# {table.protocol.recipe.title}", _summary(table)]
    groups = dict.fromkeys(line.row.group for line in table.lines)
    for group in groups:
        lines = [line for line in table.lines if line.row.group == group]
        parts += [f"## {group}"] if group else []
        parts.append(_figures(table, lines))
    parts.append(_reading(table))
    parts += filter(None, (_to_baseline(table), _rates(table), _unfinished(table), _absent(table), _notes(table)))
    parts.append(_provenance(table))
    return "\n\n".join(parts) + "\n"


def figure_text(cell: Cell) -> str:
    """Returns our figure with its spread, with as many decimals as the paper's: ``63.4 ± 1.2``."""
    if cell.ours is None:
        return UNKNOWN
    return _number(cell.ours.value, cell.ours.spread, _digits(cell))


def paper_text(figure: Figure | None) -> str:
    """Returns the paper's figure as printed."""
    if figure is None:
        return UNKNOWN
    return _number(figure.value, figure.spread, figure.digits)


def parameters_text(count: int | None) -> str:
    """Returns a number of parameters: ``0.31M`` as the paper writes it."""
    return UNKNOWN if count is None else parameters(count)


def _summary(table: BuiltTable) -> str:
    missing = f"**Not complete: {table.missing} runs are missing.**\n\n" if table.missing else ""
    return missing + _outcome(table)


def _outcome(table: BuiltTable) -> str:
    if table.analogue:
        reasons = "\n".join(f"- {reason}" for reason in table.analogue)
        return (
            "**Analogue: no figure here is one of the paper's.** What can be compared are the differences between "
            f"methods. Why:\n\n{reasons}"
        )
    cells = [cell for line in table.lines for cell in line.cells.values() if cell.paper is not None]
    verdicts = collections.Counter(cell.verdict for cell in cells)
    return (
        f"**{verdicts['reproduced']} of {len(cells)} figures reproduced**, {verdicts['not reproduced']} not "
        f"reproduced, {verdicts['not run']} not run."
    )


def _figures(table: BuiltTable, lines: Sequence[Line]) -> str:
    rows = [["method", "trainable", *table.columns, "verdict"]]
    for line in lines:
        cells = [line.cells[title] for title in table.columns]
        name = f"**{line.row.name}**"
        rows.append([name, parameters_text(line.trainable), *map(figure_text, cells), line.verdict])
        if line.paper is not None:
            rows.append([f"paper: {line.paper.name}", line.paper.trainable, *(paper_text(c.paper) for c in cells), ""])
            if not table.analogue:
                rows.append(["difference", "", *map(_difference, cells), ""])
    return _table(rows)


def _reading(table: BuiltTable) -> str:
    recipe, seeds = table.protocol.recipe, len(table.protocol.seeds)
    rule = f"the {recipe.rule} of {seeds} seeds ± their sample standard deviation" if seeds > 1 else "one seed"
    text = f"Our figures: {rule}, each run at its best evaluation on the validation split."
    text += " Trainable: without a classifier's head."
    scored = [run for run in table.results if run.stage == "train" and run.validations]
    if last := sum(best_epoch(run) == run.validations[-1][0] for run in scored):
        text += f" In {last} of {len(scored)} runs the last evaluation was the best, so more steps may help them."
    if not table.analogue:
        bounds = ", ".join(f"{column.title} {column.tolerance:g}" for column in recipe.columns)
        text += f" A figure is reproduced if it differs from the paper's by at most: {bounds}."
    if any("*" in line.paper.name for line in table.lines if line.paper):
        text += " `*`: the paper took the row from prior work."
    return f"{text}\n\n![The figures of this table beside the paper's](figure.png)"


def _to_baseline(table: BuiltTable) -> str:
    lines = [line for line in table.lines if line.gaps]
    if not lines:
        return ""
    rows = [["method", *table.columns]]
    for line in lines:
        gaps = [(line.gaps[title], _digits(line.cells[title])) for title in table.columns]
        rows.append([f"**{line.row.name}**", *(_gap(gap.ours, digits) for gap, digits in gaps)])
        if line.paper is not None:
            paper = [UNKNOWN if gap.paper is None else f"{gap.paper:+.{digits}f}" for gap, digits in gaps]
            rows.append([f"paper: {line.paper.name}", *paper])
    return (
        f"## Differences to {table.protocol.recipe.baseline}\n\n{_table(rows)}\n\nThe paper's are to full "
        f"fine-tuning of the same model. ± of ours: the standard deviation of differences of runs with equal seeds."
    )


def _rates(table: BuiltTable) -> str:
    lines = [line for line in table.lines if any(len(grid) > 1 for _, grid in line.rates.values())]
    if not lines:
        return ""
    tasks = list(table.protocol.recipe.tasks)
    rows = [["method", *tasks, "tried"]]
    for line in lines:
        grid = max((grid for _, grid in line.rates.values()), key=len)
        chosen = [line.rates.get(task) for task in tasks]
        rows.append([line.row.name, *map(_rate, chosen), ", ".join(f"{rate:g}" for rate in grid)])
    recipe = table.protocol.recipe
    on_test = any("task.validation=test" in run.overrides for run in table.results)
    split = "the dev set, as the figures" if on_test else "the validation split"
    return (
        f"## Learning rates\n\n{_table(rows)}\n\nChosen by the best validation of one run each, with seed "
        f"{recipe.tuning_seed}, on {split}. `(edge)`: the smallest or largest that was tried, so a better one "
        f"may lie beyond."
    )


def _rate(chosen: tuple[float, tuple[float, ...]] | None) -> str:
    if chosen is None:
        return UNKNOWN
    rate, grid = chosen
    edge = " (edge)" if len(grid) > 1 and rate in (min(grid), max(grid)) else ""
    return f"{rate:g}{edge}"


def _unfinished(table: BuiltTable) -> str:
    lines = sorted(f"- {run.name}: {run.status}" for run in table.results if run.status != "finished")
    return "## Runs without a figure\n\n" + "\n".join(lines) if lines else ""


def _absent(table: BuiltTable) -> str:
    if not table.absent:
        return ""
    titles = list(table.absent[0].figures)
    rows = [["the paper's row", *titles]]
    rows += [[row.name, *(paper_text(row.figures.get(title)) for title in titles)] for row in table.absent]
    reason = table.protocol.recipe.absent
    return f"## Rows of the paper that were not run\n\n{reason + chr(10) + chr(10) if reason else ''}{_table(rows)}"


def _notes(table: BuiltTable) -> str:
    notes = table.protocol.recipe.notes
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


def _provenance(table: BuiltTable) -> str:
    runs = table.results
    packs = {run.pack: run for run in runs}.values()
    training = sum(run.seconds or 0 for run in packs)
    compiling = sum(run.compile_seconds or 0 for run in packs)
    steps = sum(run.steps or 0 for run in runs)
    devices = sorted({run.device.kind or "unknown" for run in runs})
    lines = [
        f"- {len(runs)} runs in {len(packs)} packs, {steps:,} optimizer steps; {duration(training)} of training and "
        f"{duration(compiling)} of compiling, part of it at the same time; on {', '.join(devices)}.",
        f"- preset={table.protocol.preset}, scale={table.protocol.scale}.",
    ]
    lines += [
        f"- `{command.command}`: {command.runs} runs in {duration(command.seconds)}, {command.start_time}, "
        f"{command.device.kind}, {_versions(command.versions)}, commit {command.commit or 'unknown'}."
        for command in table.commands
    ]
    lines += [f"- data: {text}." for text in _data(runs)]
    lines.append(
        f"- This page is built from results.jsonl and commands.jsonl: "
        f"`python -m experiments.table {table.name}{_choices(table)} --rebuild`."
    )
    return "## How it was run\n\n" + "\n".join(lines)


def _choices(table: BuiltTable) -> str:
    protocol = table.protocol
    preset = f" preset={protocol.preset}" if protocol.preset != "paper" else ""
    return preset + (f" scale={protocol.scale}" if protocol.scale != "full" else "")


def _data(runs: Sequence[RunResult]) -> list[str]:
    texts = {}
    for run in runs:
        sizes = " / ".join(f"{run.examples.get(split, 0):,}" for split in ("train", "valid", "test"))
        texts[run.task] = (
            f"{run.task}, {sizes} examples to train, validate and test, SHA-256 {(run.data_fingerprint or '')[:12]}"
        )
    return list(texts.values())


def _versions(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax") if versions.get(name))


def _digits(cell: Cell) -> int:
    return 1 if cell.paper is None else cell.paper.digits


def _difference(cell: Cell) -> str:
    return UNKNOWN if cell.difference is None else f"{cell.difference:+.{_digits(cell)}f} ({cell.verdict})"


def _gap(gap: SeedFigure | None, digits: int) -> str:
    return UNKNOWN if gap is None else _number(gap.value, gap.spread, digits, sign="+")


def _number(value: float, spread: float | None, digits: int, sign: str = "-") -> str:
    return f"{value:{sign}.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return markdown_table(head, body).rstrip("\n")
