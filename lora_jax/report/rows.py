"""A sweep's folder as rows: one per run, from its run.json and summary.json."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_jax.errors import UserError
from lora_jax.metrics import lower_is_better
from lora_jax.track import is_open, read_json, read_metrics

_SKIPPED = {".hydra", "report", "checkpoints", "adapter", "wandb"}


@dataclass(frozen=True)
class Row:
    """One run. Fields are summary.json's; any number is None when it is not known.

    `status` is summary.json's finished, stopped (by ``stop=median``), diverged or failed; without a summary.json it is
    running when a process is writing to the run now, else interrupted. `asked` are the point's overrides,
    ``{"rank": "8"}``.
    """

    folder: Path
    run: dict[str, Any] = field(repr=False)
    name: str
    status: str
    error: str | None
    method: str
    rank: int | None
    alpha: float | None
    targets: str | None
    lr: float | None
    seed: int | None
    model: str | None
    task: str | None
    asked: dict[str, str]
    steps: int | None = None
    trainable: int | None = None
    adapter_parameters: int | None = None
    head_parameters: int | None = None
    base_parameters: int | None = None
    trainable_share: float | None = None
    metric: str | None = None
    select: str | None = None
    test: dict[str, float] | None = None
    valid_best: dict[str, float] | None = None
    train_loss: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    compile_seconds: float | None = None
    peak_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    pack: dict[str, int] | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def score(self, split: str) -> float | None:
        """The headline metric on "test", or the best seen on "valid"; None if it is not a number."""
        figures = self.test if split == "test" else self.valid_best
        return _finite((figures or {}).get(self.metric or ""))

    def choice(self) -> float | None:
        """The validation figure that chooses between runs, its sign such that more is better; None if there is none."""
        name = self.select or self.metric or ""
        value = _finite((self.valid_best or {}).get(name))
        return -value if value is not None and lower_is_better(name) else value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def load_rows(sweep: Path) -> list[Row]:
    """The runs in `sweep`, or the one run that `sweep` is: LoRA first, full fine-tuning last.

    Raises:
      UserError: there is no run in `sweep`, or one of its files is not JSON.
    """
    sweep = Path(sweep)
    rows = [_row(folder, sweep) for folder in _run_folders(sweep)]
    if not rows:
        missing = "is empty of runs" if sweep.is_dir() else "is no folder"
        raise UserError(
            f"{sweep} {missing}. Expected a sweep's folder, which holds a folder for every run "
            f"(such as {sweep / 'rank=8'}) with run.json, metrics.jsonl and, once it is over, summary.json."
        )
    return sorted(rows, key=_order)


def axes(rows: list[Row]) -> list[str]:
    """The overrides in which `rows` differ, beyond those that every table has a column for."""
    known = {"method", "rank", "alpha", "targets", "lr", "seed", "model", "task"}
    keys = sorted({key for row in rows for key in row.asked if key.rsplit(".", 1)[-1] not in known})
    return [key for key in keys if len({row.asked.get(key) for row in rows}) > 1]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def _run_folders(sweep: Path) -> list[Path]:
    found = []
    for folder, inside, files in os.walk(sweep):
        if "run.json" in files:
            found.append(Path(folder))
            inside.clear()
        inside[:] = sorted(set(inside) - _SKIPPED)
    return found


def _row(folder: Path, sweep: Path) -> Row:
    run = read_json(folder / "run.json")
    asked = dict(text.lstrip("+").split("=", 1) for text in run.get("overrides") or [] if "=" in text)
    known = {"run": run, "folder": folder, "asked": asked}
    name = run.get("name") or str(folder.relative_to(sweep))
    if (folder / "summary.json").exists():
        summary = read_json(folder / "summary.json")
        fields = {key: summary.get(key) for key in Row.__dataclass_fields__ if key not in known}
        fields |= {"name": fields["name"] or name, "method": fields["method"] or "?"}
    else:
        fields = {"name": name, "status": "running" if is_open(folder) else "interrupted", "error": None}
        fields |= _what_was_asked(run.get("config") or {}, asked)
        if records := read_metrics(folder):
            fields |= {"tokens": records[-1]["tokens"], "steps": records[-1]["step"]}
    if fields.get("targets") is not None:
        fields["targets"] = _text(fields["targets"])
    return Row(**known, **fields)


def _what_was_asked(config: dict[str, Any], asked: dict[str, str]) -> dict[str, Any]:
    """A run's axes before its summary says them: from its overrides, else from its configuration."""
    leaves = flat(config)

    def find(name: str) -> Any:
        for where in (asked, leaves):
            for key in sorted(where, key=len):
                if key in (name, f"{name}.name") or key.endswith(f".{name}"):
                    return where[key]
        return None

    def number(name: str, kind: type) -> Any:
        try:
            return kind(find(name))
        except (TypeError, ValueError):
            return None

    method = str(find("method") or "lora")
    only_lora = {"rank": number("rank", int), "alpha": number("alpha", float), "targets": find("targets")}
    if method == "full":
        only_lora = dict.fromkeys(only_lora)
    return {
        "method": method,
        **only_lora,
        "lr": number("lr", float),
        "seed": number("seed", int),
        "model": find("model"),
        "task": find("task"),
    }


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _order(row: Row) -> tuple[Any, ...]:
    method = {"lora": 0, "full": 2}.get(row.method, 1)
    targets = row.targets or ""
    numbers = [(value is None, value or 0) for value in (row.rank, row.alpha, row.lr, row.seed)]
    return (
        row.model or "",
        row.task or "",
        method,
        row.method,
        targets == "all",
        len(targets),
        targets,
        *numbers,
        row.name,
    )
