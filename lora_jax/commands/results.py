"""After Hydra: the baselines that a sweep still lacks, the report, and the exit status."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lora_jax.commands.composition import CONF, plain, point_name
from lora_jax.config import RunConfig, parse
from lora_jax.config.point import Point


def complete(sweep: Path) -> None:
    """Trains the baselines that a sweep lacks because its launcher knows nothing of them."""
    from lora_jax.report import load_rows
    from lora_jax.sweep.baseline import baselines
    from lora_jax.sweep.run import run_points

    asked = OmegaConf.load(sweep / "multirun.yaml").hydra
    if asked.launcher._target_.endswith(".PackedLauncher"):
        return
    # What was interrupted goes on.
    rows = [row for row in load_rows(sweep) if row.status != "interrupted"]
    left_out = asked.job.config.override_dirname.exclude_keys
    own = [f"file://{source.path}" for source in asked.runtime.config_sources if source.provider == "command-line"]
    with initialize_config_dir(str(CONF), version_base="1.3"):

        def settings(overrides: Sequence[str]) -> RunConfig:
            return parse(plain(compose("sweep", [*overrides, f"resume='{sweep}'", f"hydra.searchpath={own}"])))

        trained = [(row.run.overrides, settings(row.run.overrides)) for row in rows]
        points = []
        for overrides in baselines(trained, settings):
            distinct = sorted(item for item in overrides if item.lstrip("+").partition("=")[0] not in left_out)
            name = point_name(",".join(distinct), "full")
            points.append(Point(name, (sweep / name).absolute(), settings(overrides), overrides))
    if points:
        run_points(points, home=sweep, group=sweep.name)


def finish(folder: Path) -> int:
    """Builds the report and prints the table. Returns the exit status: 1 if a run failed or diverged."""
    from rich.console import Console
    from rich.measure import Measurement

    from lora_jax.report import build_report, load_rows, terminal_table

    page = build_report(folder)
    rows = load_rows(folder)
    table, console = terminal_table(rows), Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    # A file takes it whole; a terminal that is too narrow had better wrap lines than words, up to a point.
    console.width = max(console.width, min(needed, 120) if console.is_terminal else needed)
    console.print(table)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    return 0 if all(row.status in ("finished", "stopped") for row in rows) else 1
