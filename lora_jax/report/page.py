"""Writes the page of a sweep, one HTML file that loads nothing else, and the same tables and charts as files."""

import base64
import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from lora_jax.records import flat, write_atomically
from lora_jax.report import compare, tables
from lora_jax.report.picture import Picture
from lora_jax.report.rows import Row, load_rows, readable
from lora_jax.report.text import short, visible


@dataclass(frozen=True)
class Shared:
    """The settings that all runs share, and those in which they differ."""

    same: dict[str, str]
    differs: dict[str, str]


def build_report(sweep: Path) -> Path:
    """Writes ``sweep/report``: index.html, the charts as PNGs, table.md and table.csv. Returns the page's path.

    Building again replaces what is there. Each file is either the old one or the new one at any time.

    Raises:
      UserError: `sweep` holds no runs.
    """
    from lora_jax.report.charts import draw_charts  # matplotlib takes a second to import, which a table should not cost

    sweep = Path(sweep)
    rows = load_rows(sweep)
    pictures = draw_charts(rows)
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["table.md"] = tables.markdown(rows).encode()
    files["table.csv"] = tables.raw_csv(rows).encode()
    files["index.html"] = render(sweep, rows, pictures).encode()
    folder = sweep / "report"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    for stale in folder.glob("*.png"):
        if stale.name not in files:
            stale.unlink()
    return folder / "index.html"


def render(sweep: Path, rows: list[Row], pictures: list[Picture]) -> str:
    """Returns the page's HTML. Everything that comes from the files is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("lora_jax.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    folder = visible(sweep.resolve().name)
    models, tasks = ({short(getattr(row, key) or "") for row in rows} - {""} for key in ("model", "task"))
    start_times = sorted(row.run.start_time for row in rows if row.run.start_time)
    return environment.from_string(source).render(
        title=" · ".join(", ".join(sorted(names)) for names in (models, tasks) if names) or folder,
        sweep=folder,
        date=start_times[0][:16].replace("T", " ") if start_times else None,
        runs=len(rows),
        finding=compare.finding(rows),
        table=tables.headline(rows),
        statuses=[row.status for row in rows],
        aggregated=tables.over_seeds(rows),
        pictures=[(picture, base64.b64encode(picture.png).decode()) for picture in pictures],
        nothing_finished=not any(row.finished for row in rows),
        reasons=tables.reasons(rows),
        configuration=_shared([flat(row.run.config) for row in readable(rows)]),
        facts=_facts(readable(rows)),
    )


def _shared(trees: list[dict[str, Any]]) -> Shared:
    same, differs = {}, {}
    for key in dict.fromkeys(key for tree in trees for key in tree):
        values = list(dict.fromkeys(_text(tree[key]) if key in tree else "(not set)" for tree in trees))
        if len(values) == 1:
            same[key] = values[0]
        else:
            more = f" and {len(values) - 12} more" if len(values) > 12 else ""
            differs[key] = ", ".join(values[:12]) + more
    return Shared(same, differs)


def _facts(rows: list[Row]) -> list[tuple[str, str]]:
    """Returns what it takes to run the runs again: each fact once, or each of its values."""
    facts: dict[str, dict[str, None]] = {}
    for row in rows:
        run = row.run
        device = (run.device.count, run.device.kind, run.device.platform)
        sizes = ", ".join(f"{count:,} {split}" for split, count in run.data.examples.items())
        for name, value in {
            "command": run.command,
            "commit": run.commit or "unknown",
            "device": " ".join(str(part) for part in device if part is not None),
            "versions": ", ".join(f"{key} {value}" for key, value in run.versions.items()),
            "base": run.base.source,
            "base fingerprint": run.base.fingerprint,
            "base parameters": f"{run.base.parameters:,}" if run.base.parameters is not None else None,
            "data": " · ".join(filter(None, [run.data.name, sizes])),
            "data fingerprint": run.data.fingerprint,
        }.items():
            if value:
                facts.setdefault(name, {})[value] = None
    return [(name, "\n".join(values)) for name, values in facts.items()]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value)
