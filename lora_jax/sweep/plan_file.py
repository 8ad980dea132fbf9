"""Reads and writes plan.json, the packs of a sweep. A resumed sweep has the same packs, as its checkpoints need."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_jax.config.point import Point
from lora_jax.records import read_json, write_json
from lora_jax.sweep.plan import CostModel, PackPlan, plan


def plan_points(points: Sequence[Point], home: Path, costs: CostModel) -> list[PackPlan]:
    """Returns packs for `points`: the packs of plan.json, and new packs for the other points.

    The new packs are added to plan.json. The packs of other points stay there, because some sweepers launch a sweep in
    several batches.

    Args:
      points: the runs to be planned.
      home: the folder of plan.json.
      costs: predicts the memory and work of packs.
    """
    recorded_packs = read_packs(home)
    by_name = {point.name: point for point in points}
    restored = [
        PackPlan(
            **{key: pack[key] for key in pack if key != "runs"}, points=tuple(by_name[name] for name in pack["runs"])
        )
        for pack in recorded_packs
        if all(name in by_name for name in pack["runs"])
    ]
    planned = {point.name for pack in restored for point in pack.points}
    first_index = 1 + max((pack["index"] for pack in recorded_packs), default=-1)
    new = [
        dataclasses.replace(pack, index=first_index + pack.index)
        for pack in plan([point for point in points if point.name not in planned], costs)
    ]
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "plan.json", {"packs": recorded_packs + [pack.as_json() for pack in new]})
    return restored + new


def replace_pack(pack: PackPlan, parts: Sequence[PackPlan], home: Path) -> None:
    """Replaces `pack` in plan.json by `parts`."""
    others = [other for other in read_packs(home) if other["index"] != pack.index]
    write_json(home / "plan.json", {"packs": others + [part.as_json() for part in parts]})


def next_index(home: Path) -> int:
    """Returns the smallest index above those of all packs."""
    return 1 + max((pack["index"] for pack in read_packs(home)), default=-1)


def read_packs(home: Path) -> list[dict[str, Any]]:
    """Returns the packs in plan.json. Returns an empty list if there is no such file."""
    return read_json(home / "plan.json")["packs"] if (home / "plan.json").exists() else []
