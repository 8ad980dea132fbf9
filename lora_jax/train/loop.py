"""Training one pack: compile, go on from a checkpoint if there is one, train, score, leave each run's files."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.data.batches import TrainBatches, prefetch
from lora_jax.data.tasks import scoring_of
from lora_jax.methods import AdapterInit
from lora_jax.metrics import Predictions, better, combine, score
from lora_jax.stopping import JUDGED_FROM, behind
from lora_jax.train import memory, record
from lora_jax.train.checkpoint import PackCheckpoints
from lora_jax.train.evaluator import Evaluator
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import of_length, packed_step, stack, unstack_run
from lora_jax.train.plan import Point
from lora_jax.train.progress import Show
from lora_jax.train.setup import Setup
from lora_jax.train.step import Params, Program, RunState, StepMetrics, program_of
from lora_jax.weights.adapters import save_adapter


@dataclasses.dataclass(eq=False)
class Pack:
    """Runs on the device, stacked; and on the host what does not change while they train."""

    program: Program
    points: Sequence[Point]
    shapes: Sequence[
        AdapterInit
    ]  # of what each run starts from, at its true rank: the arrays themselves are in `state`
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
    inits = [program.method.init(setup.base.model, run) for run in runs]
    hypers = [hyper_of(run, n) for run, n in zip(runs, steps, strict=True)]
    shapes = jax.eval_shape(lambda: inits)
    # As one program: by itself, every small operation would be compiled.
    stacked = jax.jit(functools.partial(stack, program))(inits, hypers)
    return Pack(program, points, shapes, np.array(steps), batches, *stacked)


def compile_steps(setup: Setup, pack: Pack) -> dict[int, Any]:
    """The train step, compiled once for each padded length."""
    return _compiled(_lower_steps(setup, pack))


def _lower_steps(setup: Setup, pack: Pack) -> dict[int, Any]:
    step, example = packed_step(pack.program), pack.batches[0]
    return {
        length: step.lower(setup.base.model, pack.state, pack.constants, pack.hyper, of_length(example, length, 2))
        for length in pack.batches.lengths()
    }


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
    stopped: list[int | None]  # the step at which `stop` ended a run
    seconds: float


class Loop:
    """One pack's way from its first step, or its last checkpoint, to its summaries."""

    def __init__(
        self,
        setup: Setup,
        pack: Pack,
        evaluators: Mapping[str, Evaluator],
        *,
        index: int,
        home: Path,
        group: str,
        show: Show,
    ):
        self.evaluators = evaluators
        self.scorings = [scoring_of(point.config.task) for point in pack.points]
        self.setup, self.pack, self.index, self.home, self.group, self.show = setup, pack, index, home, group, show
        self.config = pack.points[0].config
        self.runs = range(len(pack.points))
        self.total = int(pack.steps.max())
        every = self.config.eval_every
        every = pack.batches.steps_per_epoch if every == "epoch" else every
        self.evaluations = [{*range(every, steps, every), int(steps)} for steps in pack.steps]

    def run(self) -> list[int]:
        """Trains the pack; each run's results are in its folder. Returns the places of runs that should go on alone.

        Those have a checkpoint, and no results yet. A run that diverges stops where it was and leaves the others as
        they are. The base is not touched. Raises MemoryError before the first step, if there is no room for the
        compiled programs; what the device runs out of later is XLA's own error. Either way nothing that a checkpoint
        holds is lost.
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
            going = np.flatnonzero(self._going()).tolist()
            if going:
                self._checkpoint(checkpoints)
            try:
                self._finish([i for i in self.runs if i not in going])
            except Exception as error:
                if is_out_of_memory(error):  # training is over, and need not be done again
                    self._checkpoint(checkpoints)
                raise
            return going

    def _compile(self) -> None:
        lengths = ", ".join(map(str, self.pack.batches.lengths()))
        self.show.stage(f"compiling {len(self.runs)} x {self.pack.points[0].config.method.name} for {lengths} tokens")
        started = time.monotonic()
        steps = {("step", n): step for n, step in _lower_steps(self.setup, self.pack).items()}
        evaluations = {
            (name, key): program
            for name, evaluator in self.evaluators.items()
            for key, program in evaluator.lower(self.pack.state.params, self.pack.constants).items()
        }
        self.compiled = _compiled(steps | evaluations)
        self.compile_seconds = time.monotonic() - started
        self.peak_bytes = max(record.peak_bytes(self.compiled[key]) for key in steps)
        wanted = memory.size(self.pack.state.params) + max(map(memory.added_bytes, self.compiled.values()))
        if len(self.runs) > 1 and wanted > (room := memory.budget()):
            raise MemoryError(f"its programs take {wanted / 2**30:.2f} GiB more, and there are {room / 2**30:.2f}")

    def _restore(self, checkpoints: PackCheckpoints) -> int | None:
        """Puts the pack where its newest checkpoint was; the step, or None where there is none."""
        none: list[Any] = [None] * len(self.runs)
        self.progress = Progress(0, [True] * len(self.runs), [0] * len(self.runs), [*none], [*none], [*none], 0.0)
        # Buffers of its own: the step donates the state's.
        self.best = _copied(self.pack.state.params)
        restored = checkpoints.restore({"state": self.pack.state, "best": self.best})
        if restored is None:
            return None
        arrays, note = restored
        self.pack.state, self.best = jax.tree.map(jnp.asarray, (arrays["state"], arrays["best"]))
        self.progress = Progress(**note["progress"])
        self._cut({i: step for i, step in enumerate(self.progress.stopped) if step is not None})
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
            if not self._going().any() or self._worth_parting():
                break
            if progress.step % config.checkpoint_every == 0:
                progress.seconds = time.monotonic() - began
                self._checkpoint(checkpoints)

    def _going(self) -> np.ndarray:
        """Which runs still train."""
        return np.array(self.progress.live) & (self.pack.steps > self.progress.step)

    def _checkpoint(self, checkpoints: PackCheckpoints) -> None:
        arrays = {"state": self.pack.state, "best": self.best}
        checkpoints.save(self.progress.step, arrays, {"progress": dataclasses.asdict(self.progress)})

    def _log(self, metrics: StepMetrics, moving: np.ndarray) -> None:
        self.progress.live = np.asarray(metrics.live).tolist()
        for i in np.flatnonzero(moving).tolist():
            self.progress.train_loss[i] = float(metrics.loss[i])
            self._write(i, record.train_figures(metrics, i, self.progress.tokens[i] / self.progress.seconds))
        self.show.step(self.progress.step, np.asarray(metrics.loss), self.progress.tokens, self.progress.seconds)

    def _validate(self) -> None:
        """Scores every run that is due, and keeps the parameters of those that are better than they ever were."""
        step = self.progress.step
        scores = self._scores(self._predictions("valid", self.pack.state.params, f"step {step}: "))
        improved = np.zeros(len(self.runs), bool)
        for i in self.runs:
            if not self.progress.live[i] or step not in self.evaluations[i] or self.progress.stopped[i]:
                continue
            self._write(i, {f"valid/{name}": value for name, value in scores[i].items()})
            select = self.scorings[i].select
            self.show.valid(i, scores[i][select])
            best = self.progress.best[i]
            if best is None or better(select, scores[i][select], best[select]):
                improved[i], self.progress.best[i] = True, {"step": step, **scores[i]}
        self.best = _choose(jnp.asarray(improved), self.pack.state.params, self.best)
        self._stop()

    def _stop(self) -> None:
        """Ends the runs that ask for it and have fallen behind, after a validation."""
        step = self.progress.step
        lost = np.zeros(len(self.runs), bool)
        for select in {scoring.select for scoring in self.scorings}:
            same = [scoring.select == select for scoring in self.scorings]  # runs are compared by one metric
            best = [best[select] if best and i else None for best, i in zip(self.progress.best, same, strict=True)]
            lost |= behind(select, best)
        ended = {}
        for i in np.flatnonzero(self._going() & lost).tolist():
            scored = sum(due <= step for due in self.evaluations[i])
            if self.pack.points[i].config.stop == "median" and step in self.evaluations[i] and scored >= JUDGED_FROM:
                ended[i] = self.progress.stopped[i] = step
                self.show.say(
                    f"pack {self.index}: {self.pack.points[i].name} is behind the median, ended at step {step}"
                )
        self._cut(ended)

    def _cut(self, ended: dict[int, int]) -> None:
        """Makes runs end at those steps: a step leaves a run alone that is as long as it was to be."""
        if ended:
            for i, step in ended.items():
                self.pack.steps[i] = step
            cut = jnp.asarray(self.pack.steps, self.pack.hyper.steps.dtype)
            self.pack.hyper = self.pack.hyper._replace(steps=cut)

    def _worth_parting(self) -> bool:
        """Whether runs that outlived stopped ones should go on in a program of their own.

        So they should when half of the pack has ended, and what the dead weight would cost is more than compiling took.
        """
        progress = self.progress
        ended = 1 - self._going().mean()
        left = progress.seconds / progress.step * (self.total - progress.step)
        return any(progress.stopped) and ended >= 0.5 and ended * left > self.compile_seconds

    def _predictions(self, split: str, params: Params, prefix: str = "") -> dict[str, list[Predictions]]:
        """Returns, by evaluator, the predictions of each run on a split."""
        predictions = {}
        for name, evaluator in self.evaluators.items():
            if split in evaluator.splits:
                self.show.stage(prefix + evaluator.describe(split, len(self.runs)))
                compiled = {key: self.compiled[name, key] for owner, key in self.compiled if owner == name}
                predictions[name] = evaluator.evaluate(split, compiled, params, self.pack.constants)
        return predictions

    def _scores(self, predictions: dict[str, list[Predictions]]) -> list[dict[str, float]]:
        """Returns the metrics of each run, by name."""
        parts = zip(*predictions.values(), strict=True)
        return [score(combine(run), scoring.metrics) for run, scoring in zip(parts, self.scorings, strict=True)]

    def _finish(self, ended: Sequence[int]) -> None:
        """The test scores at the best validation of each run that has `ended`, its adapter and its summary."""
        predictions = self._predictions("test", self.best)
        scores = self._scores(predictions)
        for name, evaluator in self.evaluators.items():
            for i in self.trackers:
                if name in predictions:
                    evaluator.save(self.pack.points[i].folder, predictions[name][i])
        updates, live, best, constants = jax.device_get(
            (self.pack.state.step, self.pack.state.live, self.best, self.pack.constants)
        )
        progress = self.progress
        for i in [i for i in ended if i in self.trackers]:
            point = self.pack.points[i]
            summary = record.identity(self.setup, point, self.pack.shapes[i]) | {
                "status": "diverged" if not live[i] else "stopped" if progress.stopped[i] else "finished",
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
                summary["adapter_bytes"] = self._save(i, adapter, best, constants)
            self.trackers[i].finish(summary, adapter)

    def _save(self, i: int, folder: Path, best: Params, constants: Any) -> int:
        init = self.pack.shapes[i]
        return save_adapter(
            folder,
            unstack_run(best, i, init.params),
            unstack_run(constants, i, init.constants),
            base_source=self.setup.base.source,
            base_fingerprint=self.setup.base.fingerprint,
            config=record.adapter_config(self.setup, self.pack.points[i]),
        )

    def _write(self, i: int, figures: dict[str, float]) -> None:
        if i in self.trackers:
            step = min(self.progress.step, int(self.pack.steps[i]))  # the pack may go on without this run
            self.trackers[i].log({"step": step, "tokens": self.progress.tokens[i], **figures})


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that the device, or a plan for it, has too little memory for a pack."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _choose(improved: jax.Array, new: Any, old: Any) -> Any:
    """For each run the new parameters where it has improved, else the old."""
    return jax.tree.map(lambda new, old: jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old)
