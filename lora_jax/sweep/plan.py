"""Which runs go together: of one program, not much padding, and as many as fit."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any, Protocol

from lora_jax.config.point import Point

# A run is packed with others while that makes it do no more than so many times its own work.
MAX_PADDED_WORK = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """Runs to be trained in one program, and what that is expected to take."""

    index: int
    points: tuple[Point, ...]
    bytes: int  # beside the base
    exact: bool  # `bytes` is what XLA is expected to plan, not an upper bound
    steps: int
    tokens: int  # of all runs, with padding
    flops: float  # of all runs, from beginning to end

    def as_json(self) -> dict[str, Any]:
        """Returns what plan.json says of the pack."""
        names = ("index", "bytes", "exact", "steps", "tokens", "flops")
        return {name: getattr(self, name) for name in names} | {"runs": [point.name for point in self.points]}

    def part(self, index: int, members: Sequence[int]) -> "PackPlan":
        """Returns a pack of some of the runs, which costs its share."""
        points = tuple(self.points[i] for i in members)
        share = len(points) / len(self.points)
        sizes = round(share * self.bytes), self.exact, self.steps, round(share * self.tokens), share * self.flops
        return PackPlan(index, points, *sizes)


class CostModel(Protocol):
    """What a plan asks about packs; ``costs.Costs`` answers."""

    room: int  # bytes, beside the base

    def predict(self, points: Sequence[Point]) -> tuple[int, bool]:
        """Returns the bytes of a pack, and whether they are more than an upper bound."""

    def work(self, points: Sequence[Point]) -> float:
        """Returns what each run of a pack does for each token of a batch, summed over its steps."""

    def steps(self, point: Point) -> int:
        """Returns how long a run trains."""

    def tokens(self, points: Sequence[Point]) -> int:
        """Returns the tokens of a pack, with padding."""


def plan(points: Sequence[Point], costs: CostModel) -> list[PackPlan]:
    """Returns packs for `points`: those of one program and of alike work share one, or as many as they need to fit.

    What a run does for its neighbours' sake (its rank padded to the widest, its steps idled through to the longest) is
    work that a pack of its own would save; that pack would cost a compilation, and a device does less a second with
    fewer runs at a time. So runs share a pack while none does more than MAX_PADDED_WORK times its own work. Ranks 4 to
    32 of a 22M model add 16% to the least of them and share; 1024 makes seven times the work of 1, and they do not.

    A device does one pack after another, so their order changes nothing of the end but much of the middle: those that
    take least for each of their runs come first, which gives the least mean time to a result (W. E. Smith, "Various
    optimizers for single-stage production", 1956). LoRA, which was asked for, comes before the full fine-tuning that it
    is compared with.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(_pack_key(point), []).append(point)
    chunks = [
        chunk
        for group in groups.values()
        for band in _group_by_cost(group, costs)
        for chunk in _split_to_fit(band, costs, group[0].config.pack)
    ]
    chunks.sort(key=lambda chunk: (chunk[0].config.method.trains_base, costs.work(chunk)))
    return [_planned(i, chunk, costs) for i, chunk in enumerate(chunks)]


def _planned(index: int, points: Sequence[Point], costs: CostModel) -> PackPlan:
    steps, tokens = max(map(costs.steps, points)), costs.tokens(points)
    return PackPlan(index, tuple(points), *costs.predict(points), steps, tokens, costs.work(points) * tokens / steps)


def _group_by_cost(group: Sequence[Point], costs: CostModel) -> list[list[Point]]:
    """Cuts `group`, the least work first, where a neighbour would more than MAX_PADDED_WORK-fold some run's work."""
    alone = {point: costs.work([point]) for point in group}
    bands: list[list[Point]] = []
    least = 0.0
    for point in sorted(group, key=lambda point: (costs.steps(point), alone[point])):
        least = min(least, alone[point])
        if bands and costs.work([*bands[-1], point]) <= MAX_PADDED_WORK * least:
            bands[-1].append(point)
        else:
            bands.append([point])
            least = alone[point]
    return bands


def _split_to_fit(band: Sequence[Point], costs: CostModel, max_runs: int | str) -> list[list[Point]]:
    """Cuts `band` into as few packs as fit, as even as possible, none of more than `max_runs` runs."""
    for parts in range(1, len(band) + 1):
        ends = [part * len(band) // parts for part in range(parts + 1)]
        chunks = [list(band[a:b]) for a, b in itertools.pairwise(ends)]
        few = max_runs == "auto" or all(len(chunk) <= int(max_runs) for chunk in chunks)
        if few and all(costs.predict(chunk)[0] <= costs.room for chunk in chunks):
            break
    return chunks


def _pack_key(point: Point) -> str:
    """Returns a text that is the same for points that may share a pack."""
    config = point.config
    # Where nothing may be padded, only what has the same shapes can share a pack.
    unpadded = None if config.optim.elementwise else [config.rank, config.targets, config.method.model_dump()]
    return json.dumps([config.program_key(), config.pack, unpadded], sort_keys=True)
