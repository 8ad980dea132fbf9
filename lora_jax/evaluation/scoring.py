"""From a pack's parameters to each run's figures on a split."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_jax.metrics import Predictions, Scoring, combine, score
from lora_jax.train.evaluator import TaskEvaluators
from lora_jax.train.loop import Training
from lora_jax.train.step import Params


class RunScores(NamedTuple):
    """One run's metrics on a split, and the predictions that they come from, by evaluator."""

    metrics: dict[str, float]
    predictions: Mapping[str, Predictions]


def score_runs(
    training: Training,
    evaluators: Sequence[TaskEvaluators],
    scorings: Sequence[Scoring],
    split: str,
    params: Params,
    *,
    prefix: str = "",
) -> list[RunScores]:
    """Evaluates every run of a pack on a split of its task.

    Args:
      training: the pack, with its compiled programs.
      evaluators: of each task of the pack. Those that do not evaluate `split` are left out.
      scorings: which metrics each run has.
      split: ``valid`` or ``test``.
      params: what is evaluated, leaves ``[runs, ...]``.
      prefix: stands before what the progress display shows.
    """
    predictions: list[dict[str, Predictions]] = [{} for _ in training.pack.points]
    for task in evaluators:
        trained = task.select((params, training.pack.constants))
        for name, evaluator in task.evaluators.items():
            if split not in evaluator.splits:
                continue
            training.display.stage(prefix + evaluator.describe(split, len(task.runs)))
            compiled = training.compiled.evaluation.items()
            programs = {key: program for (runs, key), program in compiled if runs == len(task.runs)}
            for run, predicted in zip(task.runs, evaluator.evaluate(split, programs, *trained), strict=True):
                predictions[run][name] = predicted
    return [
        RunScores(score(combine(by_name.values()), scoring.metrics), by_name)
        for by_name, scoring in zip(predictions, scorings, strict=True)
    ]
