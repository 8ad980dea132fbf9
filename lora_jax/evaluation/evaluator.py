"""The registry of evaluators, and the check that they can compute the metrics of a run."""

import dataclasses

from lora_jax.config import RunConfig
from lora_jax.data.encoding import TaskTokens
from lora_jax.data.tasks import find_task, scoring_of
from lora_jax.errors import UserError
from lora_jax.evaluation.choices import ChoicesEvaluator
from lora_jax.evaluation.generation import GenerationEvaluator
from lora_jax.evaluation.retrieval import RetrievalEvaluator
from lora_jax.evaluation.scores import ScoresEvaluator
from lora_jax.metrics import METRICS
from lora_jax.train.evaluator import Evaluator, TaskEvaluators
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.pack import Pack
from lora_jax.train.setup import group_by_task
from lora_jax.train.step import Program
from lora_jax.weights.load import Base

EVALUATORS: dict[str, type[Evaluator]] = {
    "scores": ScoresEvaluator,
    "choices": ChoicesEvaluator,
    "generation": GenerationEvaluator,
    "retrieval": RetrievalEvaluator,
}


def build_evaluators(program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> dict[str, Evaluator]:
    """Builds the evaluators of a run's task for its pack, by name; UserError for settings that they refuse.

    Those that evaluate the test split alone are left out for a run without a test.
    """
    names = [name for name in find_task(run.task).evaluators if run.test or "valid" in EVALUATORS[name].splits]
    return {name: EVALUATORS[name](program, base, run, tokens) for name in names}


def pack_evaluators(pack: Pack, one_length: bool = False) -> list[TaskEvaluators]:
    """Builds the evaluators of each task of a pack.

    Args:
      pack: the pack, arrays or shapes.
      one_length: whether every batch is padded to the task's longest length.

    Raises:
      UserError: an evaluator refuses the settings.
    """
    groups = group_by_task([point.config for point in pack.points])
    tasks = []
    for places in groups:
        setup, run = pack.setups[places[0]], pack.points[places[0]].config
        if one_length:
            task = run.task.model_copy(update={"buckets": setup.tokens.buckets_of(run)[-1:]})
            run = run.model_copy(update={"task": task})
        base = dataclasses.replace(setup.base, model=pack.base)
        tasks.append(TaskEvaluators(tuple(places), build_evaluators(pack.program, base, run, setup.tokens)))
    return tasks


def check_metrics(run: RunConfig) -> None:
    """Refuses, before anything is loaded, metrics that the task's evaluators cannot compute.

    Raises:
      UserError: a name is not a metric's, a metric cannot be computed on the test split, or the selecting metric
        cannot be computed on the validation split.
    """
    scoring = scoring_of(run.task)
    if reason := METRICS[scoring.select].unavailable():
        raise UserError(f"task.select={scoring.select!r}: {reason}; use {', '.join(_available(run, 'valid'))}")
    for name in scoring.metrics:
        if name != scoring.select and name not in (accepted := _available(run, "test")):
            given = list(run.task.metrics or scoring.metrics)
            raise UserError(_refusal(run, f"task.metrics={given}: {name!r}", "", accepted))
    if scoring.select not in (accepted := _available(run, "valid")):
        raise UserError(_refusal(run, f"task.select={scoring.select!r}:", " on the validation split", accepted))


def _refusal(run: RunConfig, setting: str, where: str, accepted: list[str]) -> str:
    return f"{setting} cannot be computed for task={run.task.name}{where}; use {', '.join(accepted)}"


def _available(run: RunConfig, split: str) -> list[str]:
    """Returns the names of the metrics that can be computed on a split."""
    task = find_task(run.task)
    evaluators = [EVALUATORS[name] for name in task.evaluators]
    fields: frozenset[str] = frozenset().union(
        *(kind.fields(OBJECTIVES[task.objective]) for kind in evaluators if split in kind.splits)
    )
    return [name for name, metric in METRICS.items() if metric.needs <= fields]
