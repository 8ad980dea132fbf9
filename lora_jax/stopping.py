"""``stop=median``: ending runs that have fallen behind, and how often that would have been wrong.

The rule is a variant of the median stopping rule (Golovin et al., "Google Vizier", KDD 2017, section 3.2.2). From its
third validation on, a run is ended if the best validation figure that it has had is strictly worse than the median of
the best figures that the other runs of its pack have had by the same step. Vizier holds a trial's best against the
median of the running averages of trials that are complete; here the others train beside it, so they are compared by
their best at the same step. A run that has ended counts with the best that it reached: otherwise the median would
climb with every run that is ended, until one were left. With fewer than two others nothing is ended, and never the
run that is ahead.

What is won is the device's time: once half of a pack has ended, those that are left go on in a smaller program, and
packs that wait begin the sooner. A waiting run does not join a pack midway: it would need its own length at every step,
and so a program padded to the longest of all, for a chip that a pack too large to hold them all already keeps busy.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_jax.metrics import better, lower_is_better
from lora_jax.report.rows import Row, load_rows
from lora_jax.track import read_metrics

JUDGED_FROM = 3  # a run's first validations, before which it is left alone
OTHERS = 2  # the fewest to have a median


def behind(select: str, best: Sequence[float | None]) -> list[bool]:
    """Which runs of a pack the rule would end, by the best that each has had of the figure `select`, if any."""

    def lost(i: int, own: float | None) -> bool:
        others = [other for j, other in enumerate(best) if j != i and other is not None]
        return own is not None and len(others) >= OTHERS and better(select, statistics.median(others), own)

    return [lost(i, own) for i, own in enumerate(best)]


@dataclass(frozen=True)
class Replay:
    """What the rule would have done to a pack that trained to its end."""

    pack: int
    runs: int
    ended: dict[str, int]  # the step, by name
    winner: str  # by its best validation figure
    saved: float  # share of the runs' steps

    @property
    def wrong(self) -> bool:
        return self.winner in self.ended


def replay(sweep: Path) -> list[Replay]:
    """The rule, over the records of a sweep that trained without it; packs too small for it are left out.

    Raises UserError as load_rows does.
    """
    packs: dict[int, list[Row]] = {}
    for row in load_rows(sweep):
        if row.status == "finished" and row.pack is not None:
            packs.setdefault(row.pack["index"], []).append(row)
    return [_replay(index, rows) for index, rows in sorted(packs.items()) if len(rows) > OTHERS]


def _replay(index: int, rows: list[Row]) -> Replay:
    select = rows[0].select or rows[0].metric or ""
    curves = [
        {r["step"]: r[f"valid/{select}"] for r in read_metrics(row.folder) if f"valid/{select}" in r} for row in rows
    ]
    best: list[float | None] = [None] * len(rows)
    seen = [0] * len(rows)
    ended: dict[int, int] = {}
    for step in sorted({step for curve in curves for step in curve}):
        for i, curve in enumerate(curves):
            if i not in ended and step in curve:
                seen[i] += 1
                held = best[i]
                best[i] = curve[step] if held is None or better(select, curve[step], held) else held
        for i, lost in enumerate(behind(select, best)):
            due = i not in ended and step in curves[i] and seen[i] >= JUDGED_FROM and step < max(curves[i])
            if lost and due:
                ended[i] = step
    final = [max(-value if lower_is_better(select) else value for value in curve.values()) for curve in curves]
    steps = [row.steps or max(curve) for row, curve in zip(rows, curves, strict=True)]
    saved = sum(steps[i] - step for i, step in ended.items()) / sum(steps)
    names = {rows[i].name: step for i, step in ended.items()}
    return Replay(index, len(rows), names, rows[final.index(max(final))].name, saved)
