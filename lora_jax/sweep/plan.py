"""Plans packs: runs share a pack if they share a program, need little padding, and fit in memory together."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any, Protocol

from lora_jax.config.point import Point
from lora_jax.data.tasks import find_task
from lora_jax.records import PlannedPack, flat
from lora_jax.records.plan import Gemm, Layers, Lengths
from lora_jax.sweep.choices import Choice

# A run may share a pack if its work there, with padding, is at most this multiple of its work alone.
MAX_PADDED_WORK = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class PackPlan:
    """Runs that train in one program, with predictions of the cost.

    Attributes:
      bytes: memory in addition to the base.
      exact: whether `bytes` is a prediction of XLA's plan. Otherwise it is an upper bound.
      steps: the steps of the longest run.
      tokens: tokens of all runs, with padding.
      flops: FLOPs of all runs, over the whole training.
      lengths: whether batches are padded to all of the task's lengths, or to the longest alone.
      gemm: what computes matrix products, as `choices.Choice` has it.
      layers: whether layers are unrolled, as `choices.Choice` has it.
      compile_seconds: predicted for all programs, with nothing in the cache; 0 without a prediction.
      train_seconds: predicted for all steps; 0 without a prediction.
    """

    index: int
    points: tuple[Point, ...]
    bytes: int
    exact: bool
    steps: int
    tokens: int
    flops: float
    lengths: Lengths = "all"
    gemm: Gemm = "default"
    layers: Layers = "default"
    compile_seconds: float = 0.0
    train_seconds: float = 0.0

    @classmethod
    def from_record(cls, record: PlannedPack, points: tuple[Point, ...]) -> "PackPlan":
        """Returns the pack of a record in plan.json, with the points that its names stand for."""
        return cls(points=points, **record.model_dump(exclude={"runs"}))

    def as_record(self) -> PlannedPack:
        """Returns the pack's record in plan.json."""
        names = tuple(point.name for point in self.points)
        return PlannedPack(
            runs=names, **{name: getattr(self, name) for name in PlannedPack.model_fields if name != "runs"}
        )

    def part(self, index: int, members: Sequence[int]) -> "PackPlan":
        """Returns a pack of the runs at `members`, with a proportional share of the costs that grow with runs."""
        points = tuple(self.points[i] for i in members)
        share = len(points) / len(self.points)
        return dataclasses.replace(
            self,
            index=index,
            points=points,
            bytes=round(share * self.bytes),
            tokens=round(share * self.tokens),
            flops=share * self.flops,
        )


class CostModel(Protocol):
    """Predictions that `plan` needs. ``costs.Costs`` implements it."""

    room: int  # bytes for packs, in addition to the base

    def predict(self, points: Sequence[Point]) -> tuple[int, bool]:
        """Returns the bytes of a pack, and whether they are exact. Otherwise they are an upper bound."""

    def work(self, points: Sequence[Point]) -> float:
        """Returns the FLOPs of each run of a pack for each token of a batch, summed over its steps."""

    def steps(self, point: Point) -> int:
        """Returns the optimizer steps of a run."""

    def length(self, points: Sequence[Point]) -> float:
        """Returns the mean padded length of a pack's batches."""

    def tokens(self, points: Sequence[Point]) -> int:
        """Returns the tokens of a pack, with the least padding."""

    def choose(self, points: Sequence[Point]) -> Choice:
        """Returns how a pack is to be compiled."""


def plan(points: Sequence[Point], costs: CostModel) -> list[PackPlan]:
    """Returns packs for `points`. Runs of one program and of similar work share a pack, or several if one is too large.

    A pack pads the rank of each run to the largest, and a run that has finished idles until the longest run ends. A
    separate pack would save this work, but would cost a compilation, and a device computes less per second with fewer
    runs at a time. So runs share a pack while none does more than MAX_PADDED_WORK times its work alone. Ranks 4 to 32
    of a 22M model add 16% to the work of the smallest and share a pack. Rank 1024 makes seven times the work of rank 1,
    and they do not share. Runs of several tasks share a pack if the tasks have one objective. All are then padded to
    the longest batch among them.

    A device trains one pack after another, so their order does not change when the last pack ends. The packs that take
    least per run come first, which minimises the mean time to a result (W. E. Smith, "Various optimizers for
    single-stage production", 1956). LoRA comes before the full fine-tuning that it is compared with.
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
    return [_make_plan(i, chunk, costs) for i, chunk in enumerate(chunks)]


def separating_settings(packs: Sequence[PackPlan]) -> list[str]:
    """Returns, for each pack, why its runs do not share a pack with others of their method: ``"batch=16"``.

    These are the settings that are compiled in and differ between the packs, without `base_storage`, which a plan
    always says. Other packs are separate because of their cost or their memory, and have an empty text.
    """
    settings = [flat(pack.points[0].config.static_settings()) for pack in packs]
    for one in settings:
        del one["base_storage"]

    def differing(mine: dict[str, Any]) -> str:
        others = [other for other in settings if other["method.name"] == mine["method.name"]]
        keys = [key for key in mine if len({repr(other.get(key)) for other in others}) > 1]
        return " ".join(f"{key}={mine[key]}" for key in keys)

    return [differing(mine) for mine in settings]


def _make_plan(index: int, points: Sequence[Point], costs: CostModel) -> PackPlan:
    steps, tokens, choice = max(map(costs.steps, points)), costs.tokens(points), costs.choose(points)
    return PackPlan(
        index,
        tuple(points),
        *costs.predict(points),
        steps,
        tokens,
        costs.work(points) * tokens / steps,
        **choice._asdict(),
    )


def _group_by_cost(group: Sequence[Point], costs: CostModel) -> list[list[Point]]:
    """Splits `group` into bands in which no run does more than MAX_PADDED_WORK times its work alone."""

    def work(points: Sequence[Point]) -> float:
        return costs.work(points) * costs.length(points)

    alone = {point: work([point]) for point in group}
    bands: list[list[Point]] = []
    least = 0.0
    for point in sorted(group, key=lambda point: (costs.steps(point), alone[point])):
        least = min(least, alone[point])
        if bands and work([*bands[-1], point]) <= MAX_PADDED_WORK * least:
            bands[-1].append(point)
        else:
            bands.append([point])
            least = alone[point]
    return bands


def _split_to_fit(band: Sequence[Point], costs: CostModel, max_runs: int | str) -> list[list[Point]]:
    """Splits `band` into the fewest packs that fit, of nearly equal size, with at most `max_runs` runs each."""
    for parts in range(1, len(band) + 1):
        ends = [part * len(band) // parts for part in range(parts + 1)]
        chunks = [list(band[a:b]) for a, b in itertools.pairwise(ends)]
        within_limit = max_runs == "auto" or all(len(chunk) <= int(max_runs) for chunk in chunks)
        if within_limit and all(costs.predict(chunk)[0] <= costs.room for chunk in chunks):
            break
    return chunks


def _pack_key(point: Point) -> str:
    """Returns a key. Points with different keys cannot share a pack."""
    config = point.config
    settings = config.static_settings()
    # Dropout draws for whole arrays, so it would draw other numbers for texts that another task's lengths pad.
    if not config.drops_out and config.optim.elementwise:
        settings |= {"task": find_task(config.task).objective, "data_root": None}
    # If the optimizer does not allow padding, runs of a pack must have the same shapes.
    unpadded = None if config.optim.elementwise else [config.rank, config.targets, config.method.model_dump()]
    return json.dumps([settings, config.pack, unpadded], sort_keys=True)
