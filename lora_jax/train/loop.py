"""Training one pack: compile, go on from a checkpoint if there is one, train, score, leave each run's files."""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.data.batches import Batch, EvalBatches, TrainBatches, prefetch
from lora_jax.delta import Delta
from lora_jax.methods import METHODS, Start
from lora_jax.train import record
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.evaluate import evaluate
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import member, packed_logits, packed_step, stack
from lora_jax.train.plan import Point
from lora_jax.train.progress import Show
from lora_jax.train.setup import Setup
from lora_jax.train.step import Program, RunState, StepMetrics, program_of
from lora_jax.weights.adapters import save_adapter


@dataclasses.dataclass(eq=False)
class Pack:
    """Runs on the device, stacked; and on the host what does not change while they train."""

    program: Program
    points: Sequence[Point]
    starts: Sequence[Start]
    steps: np.ndarray  # [runs], how long each trains
    batches: TrainBatches
    state: RunState
    constants: Any
    hyper: Hyper


def make_pack(setup: Setup, points: Sequence[Point]) -> Pack:
    """`points`, stacked, at step 0. Raises UserError for what the model cannot do (targets, ranks)."""
    runs = [point.config for point in points]
    first = runs[0]
    program = program_of(first)
    batches = setup.train_batches(first, tuple(run.seed for run in runs))
    steps = [run.steps_of(batches.steps_per_epoch) for run in runs]
    starts = [METHODS[program.method].start(setup.base.model, run) for run in runs]
    hypers = [hyper_of(run, n) for run, n in zip(runs, steps, strict=True)]
    return Pack(program, points, starts, np.array(steps), batches, *stack(program, starts, hypers))


def compile_steps(setup: Setup, pack: Pack) -> dict[int, Any]:
    """The train step, compiled once for each padded length."""
    return _compiled(_lower_steps(setup, pack))


def _lower_steps(setup: Setup, pack: Pack) -> dict[int, Any]:
    step, example = packed_step(pack.program), pack.batches[0]
    return {
        length: step.lower(setup.base.model, pack.state, pack.constants, pack.hyper, _of_length(example, length, 2))
        for length in pack.batches.lengths()
    }


def _lower_logits(setup: Setup, pack: Pack, *splits: EvalBatches) -> dict[int, Any]:
    logits_of = packed_logits(pack.program)
    examples = {length: Batch(*batches[0][:3]) for batches in splits for length in batches.lengths()}
    return {
        length: logits_of.lower(
            setup.base.model, pack.state.params, pack.constants, _of_length(example, length, leading=1)
        )
        for length, example in examples.items()
    }


def _of_length(example: Batch, length: int, leading: int) -> Batch:
    """The shapes of `example`, its tokens of another length; `leading` axes come before those."""

    def shape(leaf):
        return jax.ShapeDtypeStruct((*leaf.shape[:leading], *[length] * (leaf.ndim - leading)), leaf.dtype)

    return jax.tree.map(shape, example)


def _compiled(lowered: dict[Any, Any]) -> dict[Any, Any]:
    # XLA compiles outside Python's lock, so one length need not wait for the next.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))


@dataclasses.dataclass
class Progress:
    """What a resumed pack must know, beside its arrays, to report the same figures; lists are by run."""

    step: int
    live: list[bool]  # as of the last log: what has diverged since is known to the device only
    tokens: list[int]
    train_loss: list[float | None]
    best: list[dict[str, float] | None]
    seconds: float


class Loop:
    """One pack's way from its first step, or its last checkpoint, to its summaries."""

    def __init__(self, setup: Setup, pack: Pack, *, index: int, home: Path, group: str, show: Show):
        self.setup, self.pack, self.index, self.home, self.group, self.show = setup, pack, index, home, group, show
        self.config = pack.points[0].config
        self.runs = range(len(pack.points))
        self.total = int(pack.steps.max())
        self.valid = setup.eval_batches(self.config, "valid")
        self.test = setup.eval_batches(self.config, "test")
        every = self.config.eval_every
        every = pack.batches.steps_per_epoch if every == "epoch" else every
        self.evaluations = [{*range(every, steps, every), int(steps)} for steps in pack.steps]

    def run(self) -> list[dict[str, Any]]:
        """Trains the pack and returns a summary for each run, which is in its folder too.

        A run that diverges stops where it was and leaves the others as they are. The base is not touched.
        """
        self._compile()
        with contextlib.ExitStack() as stack:
            checkpoints = PackCheckpoints(
                self.home / "checkpoints" / f"pack-{self.index}", base_fingerprint=self.setup.base.fingerprint
            )
            stack.callback(checkpoints.close)
            resumed = self._restore(checkpoints)
            self.trackers = {
                i: stack.enter_context(record.open_tracker(self.setup, point, self.group, resumed))
                for i, point in enumerate(self.pack.points)
                if not record.is_done(point.folder)
            }
            self._train(checkpoints)
            return self._finish()

    def _compile(self) -> None:
        lengths = ", ".join(map(str, self.pack.batches.lengths()))
        self.show.stage(f"compiling {len(self.runs)} x {self.pack.program.method} for {lengths} tokens")
        started = time.monotonic()
        steps = {("step", n): step for n, step in _lower_steps(self.setup, self.pack).items()}
        logits = {("logits", n): f for n, f in _lower_logits(self.setup, self.pack, self.valid, self.test).items()}
        self.compiled = _compiled(steps | logits)
        self.compile_seconds = time.monotonic() - started
        self.peak_bytes = max(record.peak_bytes(self.compiled[key]) for key in steps)

    def _restore(self, checkpoints: PackCheckpoints) -> int | None:
        """Puts the pack where its newest checkpoint was; the step, or None where there is none."""
        none: list[Any] = [None] * len(self.runs)
        self.progress = Progress(0, [True] * len(self.runs), [0] * len(self.runs), [*none], [*none], 0.0)
        # Buffers of its own: the step donates the state's.
        self.best = jax.tree.map(jnp.copy, self.pack.state.params)
        restored = checkpoints.restore({"state": self.pack.state, "best": self.best})
        if restored is None:
            return None
        arrays, note = restored
        self.pack.state, self.best = jax.tree.map(jnp.asarray, (arrays["state"], arrays["best"]))
        self.progress = Progress(**note["progress"])
        return self.progress.step

    def _train(self, checkpoints: PackCheckpoints) -> None:
        progress, config = self.progress, self.config
        self.show.training(self.index, self.pack.points, self.pack.steps, progress.step)
        began = time.monotonic() - progress.seconds
        for batch in prefetch(self.pack.batches, progress.step, self.total):
            moving = np.array(progress.live) & (self.pack.steps > progress.step)
            # A copy from the device that nobody asked for would stall every step.
            with jax.transfer_guard("disallow"):
                step = self.compiled["step", batch.tokens.shape[-1]]
                self.pack.state, metrics = step(
                    self.setup.base.model, self.pack.state, self.pack.constants, self.pack.hyper, jax.device_put(batch)
                )
            progress.step += 1
            for i, words in enumerate(batch.mask.sum((1, 2))):
                progress.tokens[i] += int(words) * bool(moving[i])
            ending = self.pack.steps == progress.step
            if progress.step % config.log_every == 0 or progress.step == 1 or ending.any():
                metrics = jax.device_get(metrics)  # waits for the step, so the clock is read after it
                progress.seconds = time.monotonic() - began
                self._log(metrics, moving)
            if any(progress.step in own for own in self.evaluations):
                jax.block_until_ready(self.pack.state)
                progress.seconds = time.monotonic() - began
                self._validate()
                began = time.monotonic() - progress.seconds  # scoring is no training time
            if not (np.array(progress.live) & (self.pack.steps > progress.step)).any():
                break
            if progress.step % config.checkpoint_every == 0:
                progress.seconds = time.monotonic() - began
                arrays = {"state": self.pack.state, "best": self.best}
                checkpoints.save(progress.step, arrays, {"progress": dataclasses.asdict(progress)})

    def _log(self, metrics: StepMetrics, moving: np.ndarray) -> None:
        self.progress.live = np.asarray(metrics.live).tolist()
        for i in np.flatnonzero(moving).tolist():
            self.progress.train_loss[i] = float(metrics.loss[i])
            self._write(i, record.train_figures(metrics, i, self.progress.tokens[i] / self.progress.seconds))
        self.show.step(self.progress.step, np.asarray(metrics.loss), self.progress.tokens, self.progress.seconds)

    def _validate(self) -> None:
        """Scores every run that is due, and keeps the parameters of those that are better than they ever were."""
        step, metric = self.progress.step, self.setup.task.metric
        self.show.stage(f"step {step}: scoring {len(self.valid.encoded)} validation examples")
        scores = self._score(self.pack.state.params, self.valid)
        better = np.zeros(len(self.runs), bool)
        for i in self.runs:
            if not self.progress.live[i] or step not in self.evaluations[i]:
                continue
            self._write(i, {f"valid/{name}": value for name, value in scores[i].items()})
            self.show.valid(i, scores[i][metric])
            best = self.progress.best[i]
            if best is None or scores[i][metric] > best[metric]:
                better[i], self.progress.best[i] = True, {"step": step, **scores[i]}
        self.best = _choose(jnp.asarray(better), self.pack.state.params, self.best)

    def _score(self, params: Delta, split: EvalBatches) -> list[dict[str, float]]:
        def logits_of(base, params, constants, batch):
            return self.compiled["logits", batch.tokens.shape[-1]](base, params, constants, batch)

        return evaluate(logits_of, self.setup.base.model, params, self.pack.constants, split)

    def _finish(self) -> list[dict[str, Any]]:
        """The test scores at each run's best validation, its adapter and its summary."""
        self.show.stage(f"scoring {len(self.test.encoded)} test examples")
        scores = self._score(self.best, self.test)
        updates, live = jax.device_get((self.pack.state.step, self.pack.state.live))
        progress, summaries = self.progress, []
        for i, point in enumerate(self.pack.points):
            if i not in self.trackers:
                summaries.append(record.done_summary(point.folder))
                continue
            summary = record.identity(self.setup, point, self.pack.starts[i]) | {
                "status": "finished" if live[i] else "diverged",
                "error": None if live[i] else f"diverged at step {int(updates[i]) + 1}",
                "steps": int(updates[i]),
                "test": scores[i] if live[i] else None,
                "valid_best": progress.best[i],
                "train_loss": progress.train_loss[i],
                "tokens": progress.tokens[i],
                "seconds": progress.seconds,
                "tokens_per_s": progress.tokens[i] / progress.seconds,
                "compile_seconds": self.compile_seconds,
                "peak_memory_bytes": self.peak_bytes,
                "pack": {"index": self.index, "runs": len(self.runs)},
            }
            adapter = None
            if live[i]:
                self._write(i, {f"test/{name}": value for name, value in scores[i].items()})
                adapter = point.folder / "adapter"
                summary["adapter_bytes"] = self._save(i, adapter)
            self.trackers[i].finish(summary, adapter)
            summaries.append(summary)
        return summaries

    def _save(self, i: int, folder: Path) -> int:
        start = self.pack.starts[i]
        return save_adapter(
            folder,
            member(self.best, i, start.params),
            start.constants.get("scale", {}),
            base_source=self.setup.base.source,
            base_fingerprint=self.setup.base.fingerprint,
            config=record.adapter_config(self.setup, self.pack.points[i]),
        )

    def _write(self, i: int, figures: dict[str, float]) -> None:
        if i in self.trackers:
            step = min(self.progress.step, int(self.pack.steps[i]))  # the pack may go on without this run
            self.trackers[i].log({"step": step, "tokens": self.progress.tokens[i], **figures})


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    """For each run the new parameters where they are better, else the old."""
    return jax.tree.map(lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old)
