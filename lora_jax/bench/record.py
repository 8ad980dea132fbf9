"""What a bench leaves: ``<out>/<name>-<device>.json`` and ``.md``, with all that is needed to judge and repeat it."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "numpy")


@dataclasses.dataclass(frozen=True)
class Report:
    """`device` names the hardware in the file's name; `text` is Markdown; `figures` any JSON."""

    name: str
    device: str
    title: str
    text: str
    figures: dict[str, Any]


def write(report: Report, out: Path, command: Sequence[str]) -> Path:
    """Writes both files and returns the Markdown one."""
    found = versions()
    facts: dict[str, Any] = {
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": found,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{report.name}-{report.device}"
    path.with_suffix(".json").write_text(json.dumps(facts | report.figures, indent=2) + "\n")
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    head = [
        f"# {report.title}",
        "",
        f"    {facts['command']}",
        "",
        f"{facts['date'][:10]}, commit {facts['commit']}, {facts['hardware']}; {listed}.",
        "",
    ]
    page = path.with_suffix(".md")
    page.write_text("\n".join(head) + "\n" + report.text.strip() + "\n")
    return page


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("|" + "|".join(cells) + "|" for cells in (header, ["-"] * len(header), *rows))


def hardware() -> str:
    """The processor, its cores as this process may use them, and the system."""
    model = platform.processor() or platform.machine()
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
        named = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
        model = f"{named['Model name'].strip()} (family {named['CPU family'].strip()}, model {named['Model'].strip()})"
    except (OSError, KeyError):
        pass  # no lscpu, or one that says less
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Python's and the packages' that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with "+" where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
