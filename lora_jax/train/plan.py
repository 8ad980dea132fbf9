"""Which runs go together: of one program, not much padding, and as many as fit."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lora_jax.config import RunConfig

# A run is packed with others while that makes it do no more than so many times its own work.
PADDED = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep: its name within the sweep, its own folder, its settings, and what was typed for it."""

    name: str
    folder: Path
    config: RunConfig
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """Runs to be trained in one program, and what that is reckoned to take."""

    index: int
    points: tuple[Point, ...]
    bytes: int  # beside the base
    exact: bool  # `bytes` is what XLA is expected to plan, not an upper bound
    steps: int
    tokens: int  # of all runs, with padding
    flops: float  # of all runs, from beginning to end

    def record(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("index", "bytes", "exact", "steps", "tokens", "flops")}
        return own | {"runs": [point.name for point in self.points]}

    def part(self, index: int, members: Sequence[int]) -> "PackPlan":
        """A pack of some of the runs, which costs its share."""
        points = tuple(self.points[i] for i in members)
        share = len(points) / len(self.points)
        sizes = round(share * self.bytes), self.exact, self.steps, round(share * self.tokens), share * self.flops
        return PackPlan(index, points, *sizes)


class Costs(Protocol):
    """What a plan asks about packs; ``memory.Costs`` answers."""

    room: int  # bytes, beside the base

    def predict(self, points: Sequence[Point]) -> tuple[int, bool]:
        """Bytes of a pack, and whether that is more than an upper bound."""

    def work(self, points: Sequence[Point]) -> float:
        """What each run of a pack does for each token of a batch, summed over its steps."""

    def steps(self, point: Point) -> int: ...

    def tokens(self, points: Sequence[Point]) -> int: ...


def plan(points: Sequence[Point], costs: Costs) -> list[PackPlan]:
    """Packs for `points`: those of one program and of alike work share one, or as many as they need to fit.

    What a run does for its neighbours' sake (its rank padded to the widest, its steps idled through to the longest) is
    work that a pack of its own would save; that pack would cost a compilation, and a device does less a second with
    fewer runs at a time. So runs share a pack while none does more than PADDED times its own work. Ranks 4 to 32 of a
    22M model add 16% to the least of them and share; 1024 makes seven times the work of 1, and they do not.

    A device does one pack after another, so their order changes nothing of the end but much of the middle: those that
    take least for each of their runs come first, which gives the least mean time to a result (W. E. Smith, "Various
    optimizers for single-stage production", 1956). LoRA, which was asked for, comes before the full fine-tuning that it
    is compared with.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(_program_key(point), []).append(point)
    chunks = [
        chunk
        for group in groups.values()
        for band in _alike(group, costs)
        for chunk in _fitting(band, costs, group[0].config.pack)
    ]
    chunks.sort(key=lambda chunk: (chunk[0].config.method.name == chunk[0].config.baseline, costs.work(chunk)))
    return [_planned(i, chunk, costs) for i, chunk in enumerate(chunks)]


def _planned(index: int, points: Sequence[Point], costs: Costs) -> PackPlan:
    steps, tokens = max(map(costs.steps, points)), costs.tokens(points)
    return PackPlan(index, tuple(points), *costs.predict(points), steps, tokens, costs.work(points) * tokens / steps)


def _alike(group: Sequence[Point], costs: Costs) -> list[list[Point]]:
    """`group`, the least work first, cut where a neighbour would more than PADDED-fold some run's work."""
    own = {point: costs.work([point]) for point in group}
    bands: list[list[Point]] = []
    least = 0.0
    for point in sorted(group, key=lambda point: (costs.steps(point), own[point])):
        least = min(least, own[point])
        if bands and costs.work([*bands[-1], point]) <= PADDED * least:
            bands[-1].append(point)
        else:
            bands.append([point])
            least = own[point]
    return bands


def _fitting(band: Sequence[Point], costs: Costs, most: int | str) -> list[list[Point]]:
    """`band` cut into as few packs as fit, as even as possible, none of more than `most` runs."""
    for parts in range(1, len(band) + 1):
        ends = [part * len(band) // parts for part in range(parts + 1)]
        chunks = [list(band[a:b]) for a, b in itertools.pairwise(ends)]
        few = most == "auto" or all(len(chunk) <= int(most) for chunk in chunks)
        if few and all(costs.predict(chunk)[0] <= costs.room for chunk in chunks):
            break
    return chunks


def _program_key(point: Point) -> str:
    config = point.config
    # Where nothing may be padded, only what has the same shapes can share a pack.
    unpadded = None if config.optim.elementwise else [config.rank, config.targets, config.method.model_dump()]
    return json.dumps([config.program_key(), config.pack, unpadded], sort_keys=True)
