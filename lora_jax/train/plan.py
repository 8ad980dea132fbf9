"""Which runs go together: the same program, and as many as fit."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_jax.config import RunConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep: its name within the sweep, its own folder, its settings, and what was typed for it."""

    name: str
    folder: Path
    config: RunConfig
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """Runs to be trained in one program; `run_bytes` is what the plan reckons each to take."""

    index: int
    points: tuple[Point, ...]
    run_bytes: int

    def record(self) -> dict[str, Any]:
        return {"index": self.index, "runs": [point.name for point in self.points], "run_bytes": self.run_bytes}


def plan(points: Sequence[Point], cost: Callable[[Sequence[Point]], tuple[int, int]]) -> list[PackPlan]:
    """Packs for `points`, LoRA before full fine-tuning.

    `cost(group)` gives (bytes a run takes, bytes there are) for runs of one program. Runs of a pack are put in the
    order of their length and rank, so that a group that must be split wastes little on padding and on waiting.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(_program_key(point), []).append(point)
    packs: list[PackPlan] = []
    for group in sorted(groups.values(), key=lambda group: group[0].config.method.name == "full"):
        run_bytes, room = cost(group)
        most = max(1, room // max(run_bytes, 1))
        asked = group[0].config.pack
        most = most if asked == "auto" else min(most, asked)
        ordered = sorted(group, key=lambda point: (_length(point.config), point.config.rank))
        parts = -(-len(ordered) // most)  # as few as fit, and as even as possible
        for part in range(parts):
            chunk = ordered[part * len(ordered) // parts : (part + 1) * len(ordered) // parts]
            packs.append(PackPlan(len(packs), tuple(chunk), run_bytes))
    return packs


def _program_key(point: Point) -> str:
    config = point.config
    key = config.shape()
    if config.optim.name == "adafactor":  # not element-wise, so nothing may be padded
        key["unpadded"] = [config.rank, config.targets, getattr(config.method, "rank_pattern", None)]
    return json.dumps([key, config.pack], sort_keys=True)


def _length(config: RunConfig) -> float:
    return config.epochs or config.steps or config.task.steps
