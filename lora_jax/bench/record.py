"""Writes the results of a bench: ``<out>/<name>-<device>.json`` and ``.md``, with the facts needed to repeat it."""

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
    """The results of a bench.

    Attributes:
      name: the first part of the file's name.
      device: the second part of the file's name.
      title: the title of the page.
      text: the page in Markdown.
      figures: any JSON object.
    """

    name: str
    device: str
    title: str
    text: str
    figures: dict[str, Any]


def write(report: Report, out: Path, command: Sequence[str]) -> Path:
    """Writes both files. Returns the path of the Markdown file."""
    package_versions = versions()
    facts: dict[str, Any] = {
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": package_versions,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{report.name}-{report.device}"
    path.with_suffix(".json").write_text(json.dumps(facts | report.figures, indent=2) + "\n")
    listed = ", ".join(f"{name} {version}" for name, version in package_versions.items())
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
    """Returns a Markdown table."""
    return "\n".join("|" + "|".join(cells) + "|" for cells in (header, ["-"] * len(header), *rows))


def hardware() -> str:
    """Returns the processor, the number of cores that this process may use, and the operating system."""
    model = platform.processor() or platform.machine()
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
        fields = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
        model = (
            f"{fields['Model name'].strip()} (family {fields['CPU family'].strip()}, model {fields['Model'].strip()})"
        )
    except (OSError, KeyError):
        pass  # lscpu is missing or lacks these fields
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that may affect results."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def commit() -> str:
    """Returns the commit of this checkout, followed by "+" if files differ from it."""
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
