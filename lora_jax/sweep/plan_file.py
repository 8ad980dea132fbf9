"""Plans the packs of a sweep once. A resumed sweep has the packs of plan.json, as its checkpoints need."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lora_jax.config.point import Point
from lora_jax.errors import UserError
from lora_jax.records import PLAN_FILE, read_plan, write_plan
from lora_jax.sweep.plan import CostModel, PackPlan, plan


def plan_points(points: Sequence[Point], home: Path, costs: CostModel) -> list[PackPlan]:
    """Returns packs for `points`: the packs of plan.json, and new packs for the other points.

    The new packs are added to plan.json. The packs of other points stay there, because some sweepers launch a sweep in
    several batches.

    Args:
      points: the runs to be planned.
      home: the folder of plan.json.
      costs: predicts the memory and work of packs.

    Raises:
      UserError: plan.json is damaged, or does not fit the points.
    """
    recorded = read_plan(home)
    by_name = {point.name: point for point in points}
    restored = []
    for pack in recorded:
        missing = [name for name in pack.runs if name not in by_name]
        if not missing:
            restored.append(PackPlan.from_record(pack, tuple(by_name[name] for name in pack.runs)))
        elif len(missing) < len(pack.runs):
            raise UserError(
                f"{home / PLAN_FILE}: pack {pack.index} has {', '.join(missing)}, which this sweep has not; "
                f"remove the file and resume"
            )
    planned = [point.name for pack in restored for point in pack.points]
    if twice := sorted({name for name in planned if planned.count(name) > 1}):
        raise UserError(f"{home / PLAN_FILE}: {', '.join(twice)} stand in two packs; remove the file and resume")
    first_index = 1 + max((pack.index for pack in recorded), default=-1)
    new = [
        dataclasses.replace(pack, index=first_index + pack.index)
        for pack in plan([point for point in points if point.name not in planned], costs)
    ]
    home.mkdir(parents=True, exist_ok=True)
    write_plan(home, [*recorded, *(pack.as_record() for pack in new)])
    return restored + new


def replace_pack(pack: PackPlan, parts: Sequence[PackPlan], home: Path) -> None:
    """Replaces `pack` in plan.json by `parts`."""
    others = [other for other in read_plan(home) if other.index != pack.index]
    write_plan(home, [*others, *(part.as_record() for part in parts)])


def next_index(home: Path) -> int:
    """Returns the smallest index above those of all packs."""
    return 1 + max((pack.index for pack in read_plan(home)), default=-1)
