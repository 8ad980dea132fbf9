"""Finishes runs: computes test scores at the best validation, and writes the adapter and the summary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lora_jax.evaluation.outcomes import outcomes_of
from lora_jax.evaluation.scoring import score_runs
from lora_jax.metrics import Scoring, combine
from lora_jax.records import PackRecord
from lora_jax.records.outcomes import write_outcomes
from lora_jax.train import record
from lora_jax.train.evaluator import TaskEvaluators
from lora_jax.train.loop import Training
from lora_jax.train.pack import unstack_run
from lora_jax.weights.adapters import save_adapter


def finish(
    training: Training, evaluators: Sequence[TaskEvaluators], scorings: Sequence[Scoring], ended: Sequence[int]
) -> None:
    """Writes the results of each run of `ended` that has none yet."""
    pack, progress = training.pack, training.progress
    scores: Sequence[dict[str, float] | None] = [None] * len(pack.points)
    if pack.points[0].config.test:  # the same for all runs of a pack
        scores = test_scores(training, evaluators, scorings)
    updates, live, best, constants = jax.device_get((pack.state.step, pack.state.live, training.best, pack.constants))
    for run in [run for run in ended if run in training.trackers]:
        point = pack.points[run]
        summary = record.initial_summary(pack.setups[run], point, pack.inits[run]).replace(
            status="diverged" if not live[run] else "stopped" if progress.stopped[run] else "finished",
            error=None if live[run] else f"diverged at step {int(updates[run]) + 1}",
            steps=int(updates[run]),
            test=scores[run] if live[run] else None,
            valid_best=progress.best[run],
            train_loss=progress.train_loss[run],
            tokens=progress.tokens[run],
            seconds=progress.seconds,
            tokens_per_s=progress.tokens[run] / progress.seconds,
            compile_seconds=training.compiled.seconds,
            peak_memory_bytes=training.compiled.peak_bytes,
            pack=PackRecord(index=training.index, runs=len(pack.points)),
        )
        adapter = None
        if live[run]:
            if (figures := scores[run]) is not None:
                training.write(run, {f"test/{name}": value for name, value in figures.items()})
            adapter = point.folder / "adapter"
            summary = summary.replace(adapter_bytes=_save(training, run, adapter, best, constants))
        training.trackers[run].finish(summary, adapter)


def test_scores(
    training: Training, evaluators: Sequence[TaskEvaluators], scorings: Sequence[Scoring]
) -> list[dict[str, float]]:
    """Returns the test metrics of each run at its best validation. Writes each run's outcomes and predictions."""
    scores = score_runs(training, evaluators, scorings, "test", training.best)
    for task in evaluators:
        fingerprint = training.pack.setups[task.runs[0]].tokens.fingerprint("test")
        for run in sorted(set(task.runs) & training.trackers.keys()):
            predicted = combine(scores[run].predictions.values())
            outcomes = outcomes_of(predicted, scorings[run].metrics, fingerprint)
            write_outcomes(training.pack.points[run].folder, outcomes)
            for name, predictions in scores[run].predictions.items():
                task.evaluators[name].save(training.pack.points[run].folder, predictions)
    return [run.metrics for run in scores]


def _save(training: Training, run: int, folder: Path, best: Any, constants: Any) -> int:
    init, setup = training.pack.inits[run], training.pack.setups[run]
    return save_adapter(
        folder,
        unstack_run(best, run, init.params),
        unstack_run(constants, run, init.constants),
        base_source=setup.base.source,
        base_fingerprint=setup.base.fingerprint,
        config=record.adapter_config(setup, training.pack.points[run]),
    )
