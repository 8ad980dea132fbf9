"""From a pack's parameters to each run's figures on a split."""

from collections.abc import Mapping, Sequence

from lora_jax.metrics import Predictions, Scoring, combine, score
from lora_jax.train.evaluator import Evaluator
from lora_jax.train.loop import Training
from lora_jax.train.step import Params


def score_runs(
    training: Training,
    evaluators: Mapping[str, Evaluator],
    scorings: Sequence[Scoring],
    split: str,
    params: Params,
    *,
    prefix: str = "",
) -> tuple[list[dict[str, float]], dict[str, list[Predictions]]]:
    """Evaluates every run on a split.

    Args:
      training: the pack; its compiled programs have the keys ``(evaluator's name, evaluator's key)``.
      evaluators: by name. Those that do not evaluate `split` are left out.
      scorings: which metrics each run has.
      split: ``valid`` or ``test``.
      params: what is evaluated, leaves ``[runs, ...]``.
      prefix: stands before what the progress display shows.

    Returns:
      Each run's metrics by name, and by evaluator each run's predictions.
    """
    runs, compiled = len(training.pack.points), training.compiled.evaluation
    predictions = {}
    for name, evaluator in evaluators.items():
        if split in evaluator.splits:
            training.display.stage(prefix + evaluator.describe(split, runs))
            programs = {key: program for (owner, key), program in compiled.items() if owner == name}
            predictions[name] = evaluator.evaluate(split, programs, params, training.pack.constants)
    parts = zip(*predictions.values(), strict=True)
    scores = [score(combine(run), scoring.metrics) for run, scoring in zip(parts, scorings, strict=True)]
    return scores, predictions
