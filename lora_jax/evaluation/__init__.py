"""Evaluators: what is computed from a trained run, on its validation and test split.

To add an evaluator: a file here with a class that follows `Evaluator`, a row in EVALUATORS, and its name in the
`evaluators` of the tasks that use it. Its predictions fill fields of ``metrics.Predictions``, from which metrics are
computed.
"""

from lora_jax.evaluation.evaluator import EVALUATORS, Evaluator, build_evaluators, check_metrics, pack_evaluators

__all__ = ["EVALUATORS", "Evaluator", "build_evaluators", "check_metrics", "pack_evaluators"]
