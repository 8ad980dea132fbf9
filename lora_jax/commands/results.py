"""Completes a sweep after Hydra: trains missing baselines, and builds the report."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lora_jax.commands.arguments import quoted
from lora_jax.commands.composition import CONF, plain, point_name
from lora_jax.config import RunConfig, parse
from lora_jax.config.point import Point


def complete(sweep: Path) -> None:
    """Trains the missing baselines of a sweep. The packed launcher has trained them, other launchers have not."""
    from lora_jax.report import load_rows
    from lora_jax.sweep.baseline import baselines
    from lora_jax.sweep.run import run_points

    recorded = OmegaConf.load(sweep / "multirun.yaml").hydra
    if recorded.launcher._target_.endswith(".PackedLauncher"):
        return
    # Interrupted runs need no baseline yet: they continue when the sweep is resumed.
    rows = [row for row in load_rows(sweep) if row.status not in ("interrupted", "unreadable")]
    excluded = recorded.job.config.override_dirname.exclude_keys
    search_path = [
        f"file://{source.path}" for source in recorded.runtime.config_sources if source.provider == "command-line"
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):

        def settings(overrides: Sequence[str]) -> RunConfig:
            return parse(
                plain(compose("sweep", [*overrides, f"resume={quoted(sweep)}", f"hydra.searchpath={search_path}"]))
            )

        trained = [(row.run.overrides, settings(row.run.overrides)) for row in rows]
        points = []
        for overrides in baselines(trained, settings):
            distinct = sorted(item for item in overrides if item.lstrip("+").partition("=")[0] not in excluded)
            name = point_name(",".join(distinct), "full")
            points.append(Point(name, (sweep / name).absolute(), settings(overrides), overrides))
    if points:
        run_points(points, home=sweep, group=sweep.name)


def finish(folder: Path) -> int:
    """Builds the report and prints its table.

    Returns:
      The exit status: 0 if every run has finished or was ended by the `stop` rule, else 1.
    """
    from rich.console import Console
    from rich.measure import Measurement

    from lora_jax.report import build_report, load_rows, terminal_table

    page = build_report(folder)
    rows = load_rows(folder)
    table, console = terminal_table(rows), Console()
    needed_width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    # A file gets the whole width. A narrow terminal wraps lines rather than cells, up to 120 columns.
    console.width = max(console.width, min(needed_width, 120) if console.is_terminal else needed_width)
    console.print(table)
    console.print(f"report: {page}", soft_wrap=True, markup=False, emoji=False, highlight=False)
    return 0 if all(row.status in ("finished", "stopped") for row in rows) else 1
