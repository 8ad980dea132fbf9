"""Replays ``stop=median`` over the records of sweeps that trained without it: what it saves, and how often it errs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_jax.metrics import better
from lora_jax.records import Summary, find_runs, read_metrics, read_summary
from lora_jax.train.stopping import FEWEST_OTHER_RUNS, MedianRule


@dataclass(frozen=True)
class Replay:
    """What the rule would have done to a pack that trained to its end."""

    pack: int
    runs: int
    ended: Mapping[str, int]  # the step, by the name of the run
    winner: str  # the run with the best validation figure
    saved: float  # share of the runs' steps

    @property
    def wrong(self) -> bool:
        """Whether the rule would have ended the winner."""
        return self.winner in self.ended


@dataclass(frozen=True)
class _Curve:
    """A finished run's validation figures by step, at least one."""

    name: str
    steps: int
    values: Mapping[int, float]


def replay(sweep: Path) -> list[Replay]:
    """Returns a replay of each pack in `sweep`. Packs too small for the rule are left out.

    Raises:
      UserError: there is no run in `sweep`, or a file of one cannot be read.
    """
    packs: dict[int, list[tuple[Path, Summary]]] = {}
    for folder in find_runs(sweep):
        summary = read_summary(folder)
        if summary is not None and summary.status == "finished" and summary.pack is not None:
            packs.setdefault(summary.pack.index, []).append((folder, summary))
    return [_replay(index, runs) for index, runs in sorted(packs.items()) if len(runs) > FEWEST_OTHER_RUNS]


def _replay(index: int, runs: list[tuple[Path, Summary]]) -> Replay:
    metric = runs[0][1].select or runs[0][1].metric or ""
    curves = [_curve(folder, summary, metric) for folder, summary in runs]
    rule = MedianRule(metric, len(curves))
    ended: dict[int, int] = {}
    for step in sorted({step for curve in curves for step in curve.values}):
        for i, curve in enumerate(curves):
            if i not in ended and step in curve.values:
                rule.record(i, step, curve.values[step])
        # The last validation of a run ends nothing: the run is over.
        active = [i not in ended and step < max(curve.values, default=0) for i, curve in enumerate(curves)]
        ended |= dict.fromkeys(rule.ended_at(step, active), step)
    saved = sum(curves[i].steps - step for i, step in ended.items())
    return Replay(
        pack=index,
        runs=len(curves),
        ended={curves[i].name: step for i, step in ended.items()},
        winner=_winner(metric, curves),
        saved=saved / max(1, sum(curve.steps for curve in curves)),
    )


def _curve(folder: Path, summary: Summary, metric: str) -> _Curve:
    values = {}
    for record in read_metrics(folder, summary):
        if (value := record.figure(f"valid/{metric}")) is not None:
            values[record.step] = value
    return _Curve(summary.name, summary.steps or max(values, default=0), values)


def _winner(metric: str, curves: Iterable[_Curve]) -> str:
    """Returns the name of the run with the best figure at any step, the first of equals."""
    winner, best = "", None
    for curve in curves:
        for value in curve.values.values():
            if best is None or better(metric, value, best):
                winner, best = curve.name, value
    return winner
