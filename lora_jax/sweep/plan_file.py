"""plan.json: which packs a sweep is made of. A resumed sweep keeps them, since a run continues only in its pack."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_jax.config.point import Point
from lora_jax.records import read_json, write_json
from lora_jax.sweep.plan import CostModel, PackPlan, plan


def plan_points(points: Sequence[Point], home: Path, costs: CostModel) -> list[PackPlan]:
    """Returns packs for `points`: those that plan.json has, and new ones, which are added to it, for the rest.

    plan.json keeps the packs of other points too: some sweepers launch a sweep in several batches.
    """
    recorded = read_packs(home)
    by_name = {point.name: point for point in points}
    kept = [
        PackPlan(
            **{key: pack[key] for key in pack if key != "runs"}, points=tuple(by_name[name] for name in pack["runs"])
        )
        for pack in recorded
        if all(name in by_name for name in pack["runs"])
    ]
    planned = {point.name for pack in kept for point in pack.points}
    first = 1 + max((pack["index"] for pack in recorded), default=-1)
    new = [
        dataclasses.replace(pack, index=first + pack.index)
        for pack in plan([point for point in points if point.name not in planned], costs)
    ]
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "plan.json", {"packs": recorded + [pack.as_json() for pack in new]})
    return kept + new


def replace_pack(pack: PackPlan, parts: Sequence[PackPlan], home: Path) -> None:
    """Puts `parts` in the place of `pack`."""
    others = [other for other in read_packs(home) if other["index"] != pack.index]
    write_json(home / "plan.json", {"packs": others + [part.as_json() for part in parts]})


def next_index(home: Path) -> int:
    """Returns an index that no pack has yet."""
    return 1 + max((pack["index"] for pack in read_packs(home)), default=-1)


def read_packs(home: Path) -> list[dict[str, Any]]:
    """Returns the packs as plan.json has them; none where there is no such file."""
    return read_json(home / "plan.json")["packs"] if (home / "plan.json").exists() else []
