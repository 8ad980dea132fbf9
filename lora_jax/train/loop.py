"""The training loop: it runs the compiled step on each batch and calls the callbacks after each step."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool

from lora_jax.data.batches import Batch, prefetch
from lora_jax.records import MetricsRecord
from lora_jax.tracking import Tracker
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.compile import CompiledPack
from lora_jax.train.display import ProgressDisplay
from lora_jax.train.pack import Pack
from lora_jax.train.progress import Clock, Progress
from lora_jax.train.sharding import put_batch, put_runs
from lora_jax.train.step import Params, StepMetrics


@dataclasses.dataclass(eq=False)
class Training:
    """The state of a pack in training, shared by the loop and its callbacks.

    Attributes:
      best: each run's parameters at its best validation, leaves ``[runs, ...]``.
      trackers: the trackers of the runs that have no results yet, by index in the pack.
    """

    index: int
    pack: Pack
    compiled: CompiledPack
    checkpoints: PackCheckpoints
    display: ProgressDisplay
    progress: Progress
    best: Params
    trackers: dict[int, Tracker]
    clock: Clock = dataclasses.field(default_factory=Clock)

    def unfinished(self) -> Bool[np.ndarray, " runs"]:
        """Returns a mask of the runs that are still training."""
        return self.progress.unfinished(self.pack.steps)

    def write(self, run: int, figures: dict[str, float]) -> None:
        """Logs figures of one run at the last step that this run has trained."""
        if run in self.trackers:
            step = min(self.progress.step, int(self.pack.steps[run]))  # the pack may continue after this run has ended
            self.trackers[run].log(MetricsRecord(step=step, tokens=self.progress.tokens[run], **figures))

    def set_last_step(self, last_steps: dict[int, int]) -> None:
        """Makes runs end at the given steps: the train step does not change a run that has reached its length.

        Args:
          last_steps: the last step of a run, by index in the pack.
        """
        if last_steps:
            for run, step in last_steps.items():
                self.pack.steps[run] = step
            steps = put_runs(np.asarray(self.pack.steps, self.pack.hyper.steps.dtype))
            self.pack.hyper = self.pack.hyper._replace(steps=steps)

    def save_checkpoint(self) -> None:
        """Saves a checkpoint of the pack at the current step."""
        arrays = {"state": self.pack.state, "best": self.best}
        self.checkpoints.save(self.progress.step, arrays, {"progress": self.progress.as_json()})

    def should_repack(self) -> bool:
        """Returns whether the unfinished runs should continue in a program without the ended ones.

        They should if the `stop` rule has ended a run, at least half of the pack has ended, and the time that the
        ended runs would still take exceeds the time that compilation took.
        """
        progress = self.progress
        ended_share = 1 - self.unfinished().mean()
        seconds_left = progress.seconds / progress.step * (int(self.pack.steps.max()) - progress.step)
        return any(progress.stopped) and ended_share >= 0.5 and ended_share * seconds_left > self.compiled.seconds


class Callback(Protocol):
    """An action after each train step."""

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Runs after every step. `train` calls callbacks in the order of its list.

        Args:
          training: the state of the pack, after ``training.progress.step`` updates.
          metrics: the metrics of the step, on the device, leaves ``[runs]``. Reading them waits for the step.
          active: a mask of the runs that this step updated.
        """


def restore(training: Training) -> bool:
    """Restores the newest checkpoint of the pack. Returns whether there was one."""
    pack = training.pack
    restored = training.checkpoints.restore({"state": pack.state, "best": training.best})
    if restored is None:
        return False
    arrays, note = restored
    pack.state, training.best = put_runs((arrays["state"], arrays["best"]))
    training.progress = Progress(**note["progress"])
    training.set_last_step({run: step for run, step in enumerate(training.progress.stopped) if step is not None})
    return True


def train(training: Training, callbacks: Sequence[Callback]) -> None:
    """Trains the pack until every run has ended or `Training.should_repack` is true.

    A run that diverges keeps its state from before that step, and does not affect the other runs. The base does not
    change.
    """
    pack, progress = training.pack, training.progress
    training.display.training(training.index, pack.points, pack.steps, progress.step)
    training.clock = Clock(progress.seconds)
    for batch, metrics in train_steps(pack.base, pack, training.compiled.steps, progress.step):
        active = training.unfinished()
        progress.step += 1
        for run, tokens in enumerate(batch.mask.sum(tuple(range(1, batch.mask.ndim)))):
            progress.tokens[run] += int(tokens) * bool(active[run])
        for callback in callbacks:
            callback.after_step(training, metrics, active)
        if not training.unfinished().any() or training.should_repack():
            break


def train_steps(
    base: nnx.Module, pack: Pack, steps: Mapping[int, Any], start: int
) -> Iterator[tuple[Batch, StepMetrics]]:
    """Runs the train step on each batch, and yields the batch and the step's metrics.

    A step is dispatched, not awaited, when it is yielded. `pack.state` is then its result.

    Args:
      base: the frozen model.
      pack: the pack. Its state is replaced at every step.
      steps: the compiled train step for each padded length.
      start: the number of updates already done.
    """
    for batch in prefetch(pack.batches, start, int(pack.steps.max())):
        # An implicit copy from the device would stall every step, so it is an error here.
        with jax.transfer_guard("disallow"):
            step = steps[batch.mask.shape[-1]]
            pack.state, metrics = step(base, pack.state, pack.constants, pack.hyper, put_batch(batch))
        yield batch, metrics
