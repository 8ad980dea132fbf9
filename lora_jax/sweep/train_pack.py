"""Trains one pack, from step 0 or its newest checkpoint, and writes the results of its runs."""

import contextlib
from pathlib import Path

import numpy as np

from lora_jax.data.tasks import scoring_of
from lora_jax.evaluation.validate import Validate
from lora_jax.host import import_report, resume_garbage_collection
from lora_jax.sweep.finish import finish
from lora_jax.sweep.plan import PackPlan
from lora_jax.sweep.prepare import PreparedPack
from lora_jax.tracking import TrackingSession
from lora_jax.train import record
from lora_jax.train.callbacks import LogMetrics, SaveCheckpoints
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.compile import check_memory
from lora_jax.train.display import ProgressDisplay
from lora_jax.train.loop import Training, restore, train
from lora_jax.train.memory import is_out_of_memory
from lora_jax.train.pack import copied
from lora_jax.train.progress import Progress


def train_pack(
    prepared: PreparedPack,
    plan: PackPlan,
    checkpoints: Path,
    group: str,
    tracking: TrackingSession,
    display: ProgressDisplay,
) -> list[int]:
    """Trains a pack and writes each run's results to its folder.

    Args:
      prepared: the pack, initialised, and its programs.
      plan: its plan.
      checkpoints: the folder of the pack's checkpoints.
      group: the W&B group.
      tracking: the session that opens the runs' trackers.
      display: the progress display.

    Returns:
      The indices of unfinished runs that should continue in their own pack. They have a checkpoint and no results.

    Raises:
      MemoryError: the compiled programs need more memory than is free. This is raised before the first step. If the
        device runs out of memory later, XLA raises its own error. Checkpoints stay valid in both cases.
    """
    config = plan.points[0].config
    pack, evaluators = prepared.pack, prepared.evaluators
    scorings = [scoring_of(point.config.task) for point in plan.points]
    lengths = ", ".join(map(str, pack.batches.lengths()))
    display.stage(f"compiling {len(plan.points)} x {config.method.name} for {lengths} tokens")
    import_report()
    compiled = prepared.compiled.result()
    resume_garbage_collection()
    check_memory(pack, compiled)
    every = config.eval_every
    intervals = pack.batches.steps_per_epoch if every == "epoch" else [every] * len(plan.points)
    validate = Validate.every(intervals, pack.steps, evaluators, scorings)
    with contextlib.ExitStack() as stack:
        names, fingerprint = [point.name for point in plan.points], pack.setups[0].base.fingerprint
        store = PackCheckpoints(checkpoints, base_fingerprint=fingerprint, runs=names, warn=display.say)
        stack.enter_context(contextlib.closing(store))
        progress, best = Progress.start(len(plan.points)), copied(pack.state.params)
        training = Training(plan.index, pack, compiled, store, display, progress, best, {})
        resumed = restore(training)
        validate.restore(training.progress)
        keep_until = training.progress.step if resumed else None
        training.trackers |= {
            run: stack.enter_context(
                record.open_tracker(tracking, pack.setups[run], point, group=group, keep_until=keep_until)
            )
            for run, point in enumerate(plan.points)
            if not record.is_done(point.folder)
        }
        train(training, [LogMetrics(config.log_every), validate, SaveCheckpoints(config.checkpoint_every)])
        unfinished = np.flatnonzero(training.unfinished()).tolist()
        if unfinished:
            training.save_checkpoint()
        try:
            ended = [run for run in range(len(plan.points)) if run not in unfinished]
            finish(training, evaluators, scorings, ended)
        except Exception as error:
            if is_out_of_memory(error):  # training is complete, so the parts of the pack need not repeat it
                training.save_checkpoint()
            raise
        return unfinished
