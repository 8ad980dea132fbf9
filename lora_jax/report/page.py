"""The page of a sweep: one HTML file that needs nothing but itself, and the same tables and figures as files."""

import base64
import json
import math
import os
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from lora_jax.report import compare, figures, tables
from lora_jax.report.rows import Row, flat, load_rows


@dataclass(frozen=True)
class Shared:
    """What all runs have in common, and what tells them apart."""

    same: dict[str, str]
    differs: dict[str, str]


def build_report(sweep: Path) -> Path:
    """Writes ``sweep/report``: index.html, the figures as PNGs, table.md and table.csv. Returns the page's path.

    Building again replaces what is there; each file is either the old one or the new one at any time.

    Raises:
      UserError: `sweep` holds no runs.
    """
    sweep = Path(sweep)
    rows = load_rows(sweep)
    pictures = figures.pictures(rows)
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["table.md"] = tables.markdown(rows).encode()
    files["table.csv"] = tables.raw_csv(rows).encode()
    files["index.html"] = render(sweep, rows, pictures).encode()
    folder = sweep / "report"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)
    for stale in folder.glob("*.png"):
        if stale.name not in files:
            stale.unlink()
    return folder / "index.html"


def render(sweep: Path, rows: list[Row], pictures: list[figures.Picture]) -> str:
    """The page's HTML. Everything that comes from the files is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("lora_jax.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    models, tasks = ({getattr(row, key) for row in rows} - {None} for key in ("model", "task"))
    started = sorted(row.run["started"] for row in rows if row.run.get("started"))
    return environment.from_string(source).render(
        title=" · ".join(", ".join(sorted(names)) for names in (models, tasks) if names) or sweep.resolve().name,
        sweep=sweep.resolve().name,
        date=started[0][:16].replace("T", " ") if started else None,
        runs=len(rows),
        finding=compare.finding(rows),
        table=tables.headline(rows),
        statuses=[row.status for row in rows],
        aggregated=tables.over_seeds(rows),
        pictures=[(picture, base64.b64encode(picture.png).decode()) for picture in pictures],
        nothing_finished=not any(row.finished for row in rows),
        reasons=tables.reasons(rows),
        configuration=_shared([flat(row.run.get("config") or {}) for row in rows]),
        facts=_facts(rows),
    )


def _shared(trees: list[dict[str, Any]]) -> Shared:
    same, differs = {}, {}
    for key in dict.fromkeys(key for tree in trees for key in tree):
        values = list(dict.fromkeys(_shown(tree[key]) if key in tree else "(not set)" for tree in trees))
        if len(values) == 1:
            same[key] = values[0]
        else:
            more = f" and {len(values) - 12} more" if len(values) > 12 else ""
            differs[key] = ", ".join(values[:12]) + more
    return Shared(same, differs)


def _facts(rows: list[Row]) -> list[tuple[str, str]]:
    """Where the runs come from, so that they can be run again: each fact once, or each of its values."""
    facts: dict[str, dict[str, None]] = {}
    for row in rows:
        run = row.run
        base, data, device = (run.get(key) or {} for key in ("base", "data", "device"))
        kind = " ".join(str(device[key]) for key in ("count", "kind", "platform") if device.get(key) is not None)
        sizes = [f"{data[key]:,} {key}" for key in ("train", "valid", "test") if data.get(key) is not None]
        for name, value in {
            "command": run.get("command"),
            "commit": run.get("commit") or "unknown",
            "device": kind,
            "versions": ", ".join(f"{key} {value}" for key, value in (run.get("versions") or {}).items()),
            "base": base.get("source"),
            "base fingerprint": base.get("fingerprint"),
            "base parameters": f"{base['parameters']:,}" if base.get("parameters") is not None else None,
            "data": " · ".join(filter(None, [data.get("name"), ", ".join(sizes)])),
            "data fingerprint": data.get("fingerprint"),
        }.items():
            if value:
                text = shlex.join(value) if isinstance(value, list) else str(value)
                facts.setdefault(name, {})[text] = None
    return [(name, "\n".join(values)) for name, values in facts.items()]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value)
