"""The training loop: batches through the compiled step, and callbacks after each."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from lora_jax.data.batches import Batch, prefetch
from lora_jax.records import MetricsRecord
from lora_jax.tracking import Tracker
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.compile import CompiledPack
from lora_jax.train.display import ProgressDisplay
from lora_jax.train.pack import Pack
from lora_jax.train.progress import Clock, Progress
from lora_jax.train.setup import Setup
from lora_jax.train.sharding import put_batch, put_runs
from lora_jax.train.step import Params, StepMetrics


@dataclasses.dataclass(eq=False)
class Training:
    """A pack while it trains: what the loop and its callbacks share.

    Attributes:
      best: each run's parameters at its best validation, leaves ``[runs, ...]``.
      trackers: of the runs that have no results yet, by their place in the pack.
    """

    index: int
    setup: Setup
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
        """Logs figures of one run, at the step that the run itself has reached."""
        if run in self.trackers:
            step = min(self.progress.step, int(self.pack.steps[run]))  # the pack may go on without this run
            self.trackers[run].log(MetricsRecord(step=step, tokens=self.progress.tokens[run], **figures))

    def set_last_step(self, last: dict[int, int]) -> None:
        """Makes runs end at the given steps: a step leaves a run alone that is as long as it was to be."""
        if last:
            for run, step in last.items():
                self.pack.steps[run] = step
            steps = put_runs(np.asarray(self.pack.steps, self.pack.hyper.steps.dtype))
            self.pack.hyper = self.pack.hyper._replace(steps=steps)

    def save_checkpoint(self) -> None:
        """Saves the pack as it is now."""
        arrays = {"state": self.pack.state, "best": self.best}
        self.checkpoints.save(self.progress.step, arrays, {"progress": self.progress.as_json()})

    def should_repack(self) -> bool:
        """Returns whether runs that outlived stopped ones should go on in a program of their own.

        They should when half of the pack has ended, and what the dead weight would cost is more than compiling took.
        """
        progress = self.progress
        ended = 1 - self.unfinished().mean()
        left = progress.seconds / progress.step * (int(self.pack.steps.max()) - progress.step)
        return any(progress.stopped) and ended >= 0.5 and ended * left > self.compiled.seconds


class Callback(Protocol):
    """Something that is done after a step."""

    def after_step(self, training: Training, metrics: StepMetrics, active: Bool[np.ndarray, " runs"]) -> None:
        """Is called after every step, in the order of the list.

        Args:
          training: the pack; ``training.progress.step`` updates are done.
          metrics: the step's, on the device, leaves ``[runs]``: reading them waits for the step.
          active: which runs this step updated.
        """


def restore(training: Training) -> bool:
    """Puts the pack where its newest checkpoint was. Returns whether there was one."""
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
    """Trains the pack until every run has ended, or the rest should go on in a program of its own.

    A run that diverges stops where it was and leaves the others as they are. The base is not touched.
    """
    pack, progress = training.pack, training.progress
    training.display.training(training.index, pack.points, pack.steps, progress.step)
    training.clock = Clock(progress.seconds)
    for batch, metrics in train_steps(training.setup.base.model, pack, training.compiled.steps, progress.step):
        active = training.unfinished()
        progress.step += 1
        for run, tokens in enumerate(batch.mask.sum((1, 2))):
            progress.tokens[run] += int(tokens) * bool(active[run])
        for callback in callbacks:
            callback.after_step(training, metrics, active)
        if not training.unfinished().any() or training.should_repack():
            break


def train_steps(
    base: nnx.Module, pack: Pack, steps: Mapping[int, Any], start: int
) -> Iterator[tuple[Batch, StepMetrics]]:
    """Yields each batch and its metrics from step `start` on, once the step is on its way; `pack.state` is new then.

    `steps` has the compiled train step for each padded length.
    """
    for batch in prefetch(pack.batches, start, int(pack.steps.max())):
        # A copy from the device that nobody asked for would stall every step.
        with jax.transfer_guard("disallow"):
            step = steps[batch.tokens.shape[-1]]
            pack.state, metrics = step(base, pack.state, pack.constants, pack.hyper, put_batch(batch))
        yield batch, metrics


@jax.jit
def copied(tree: Any) -> Any:
    """Copies arrays into buffers of their own: the step donates the state's."""
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def choose_runs(improved: Bool[Array, " runs"], new: Any, old: Any) -> Any:
    """Returns for each run the new parameters where it has improved, else the old."""
    return jax.tree.map(lambda new, old: jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old)
