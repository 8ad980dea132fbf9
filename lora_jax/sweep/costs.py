"""Predicts the memory and the work of a pack before anything is allocated for it.

XLA decides what it stores besides a program's arguments (on a CPU it stores W + A·B, and rematerialised layers do not
show in shapes). So the step is compiled, from shapes alone, for two and for four runs. The bytes of packs of one
program grow linearly with the number of runs from there on. A step of one run is not used, because XLA drops its axis
of runs: extrapolation from one and two runs to eight was up to 9% too low on a CPU, and from two and four runs at most
2% off.
"""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from lora_jax.config import RunConfig
from lora_jax.config.point import Point
from lora_jax.data.batches import Batch
from lora_jax.data.pack_batches import PackBatches
from lora_jax.delta import count, parameters
from lora_jax.kernels.choice import MAX_WIDTH
from lora_jax.methods import AdapterInit, method_of
from lora_jax.sweep.choices import Choice, Workload, choose
from lora_jax.sweep.setups import Setups
from lora_jax.train.initial import initial_shapes
from lora_jax.train.memory import budget, pack_bytes, run_bytes, state_bytes
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import align, packed_step, shapes_of_runs, stack
from lora_jax.train.setup import Setup, common_base, group_by_task, pack_batches
from lora_jax.train.step import RunState, program_of

# A pack surely fits if this multiple of its shapes' bytes fits. It is then planned without compilation. XLA planned 1.3
# to 1.8 times those bytes on a CPU.
SAFETY_FACTOR = 3
MEASURED_RUNS = (2, 4)  # sizes of the packs that are compiled


class Costs:
    """Predicts the bytes and the work of packs. It compiles each program once."""

    def __init__(self, setups: Setups) -> None:
        self.room = budget()
        self._setups = setups
        self._keys: dict[Point, str] = {}
        self._shapes: dict[str, AdapterInit] = {}
        self._widest: dict[frozenset[str], AdapterInit] = {}
        self._batches: dict[str, PackBatches] = {}
        self._lengths: dict[str, float] = {}
        self._kernels: dict[str, int] = {}
        self._steps: dict[Point, int] = {}
        self._traced: dict[tuple[str, int], int] = {}  # `run_bytes`, by program and `state_bytes`
        # By program and `state_bytes` of its runs: fixed bytes of a pack, and each run's bytes beyond `state_bytes`.
        self._measured: dict[str, dict[int, tuple[float, float]]] = {}

    def steps(self, point: Point) -> int:
        """Returns the optimizer steps of `point`."""
        if point not in self._steps:
            self._steps[point] = point.config.steps_of(self.batches([point]).steps_per_epoch[0])
        return self._steps[point]

    def tokens(self, points: Sequence[Point]) -> int:
        """Returns the tokens that `points` train on as one pack, with padding."""
        batches = self.batches(points)
        texts = math.prod(batches.example(batches.lengths()[0]).mask.shape[1:-1])  # several where a batch has tuples
        return int(self.length(points) * texts * len(points) * max(map(self.steps, points)))

    def length(self, points: Sequence[Point]) -> float:
        """Returns the mean padded length of the batches of `points` as one pack."""
        if (key := self._task_key(points)) not in self._lengths:
            batches = self.batches(points)
            self._lengths[key] = float(np.mean([batches.length_at(i) for i in range(max(batches.steps_per_epoch))]))
        return self._lengths[key]

    def choose(self, points: Sequence[Point]) -> Choice:
        """Returns how `points` are compiled as one pack."""
        batches, run = self.batches(points), points[0].config
        steps, epoch = max(map(self.steps, points)), max(batches.steps_per_epoch)
        lengths = [batches.length_at(step) for step in range(min(steps, epoch))]
        layers, width = layers_and_width(self._setups.get(run).base.model)
        program = program_of(run)
        pallas = program.kernel == "pallas" and not run.method.trains_base and width <= MAX_WIDTH
        tokens = self.tokens(points) / (steps * self.length(points))
        work = Workload(
            {length: steps * count / len(lengths) for length, count in collections.Counter(lengths).items()},
            flops=self.work(points) / steps * tokens,
            tokens=tokens,
            layers=layers,
            width=width,
            unroll=layers if program.unroll is True else max(1, int(program.unroll)),
            dtype=run.dtype,
            kernel="pallas" if pallas else "xla",
            padding_fixed=run.drops_out,
            unrolled_fits=self._bound(points) <= self.room,
        )
        return choose(work, run.compile, jax.default_backend())

    def work(self, points: Sequence[Point]) -> float:
        """Returns the FLOPs of each run in a pack of `points` for each token of a batch, summed over its steps.

        An embedding table counts only if it is tied to the output layer. In a pack each run has the sizes of the
        largest run and the steps of the longest.
        """
        run = points[0].config
        if (key := run.program_key()) not in self._kernels:
            model = self._setups.get(run).base.model
            tied = f"{getattr(model, 'tied', None)}/embedding"
            weights = parameters(model).items()
            self._kernels[key] = count([w for path, w in weights if path.endswith("/kernel") or path == tied])
        flops = method_of(run.method).flops_per_token(self._kernels[key], self.widest(points).params)
        # An image counts as one token of a batch, and as many go through the model as it has hidden states.
        flops *= getattr(getattr(self._setups.get(run).base.model.backbone, "config", None), "states", 1)
        return flops * max(map(self.steps, points))

    def widest(self, points: Iterable[Point]) -> AdapterInit:
        """Returns the shapes of each run in a pack of `points`, padded to the largest."""
        distinct = {self._key(point): point for point in points}
        if (key := frozenset(distinct)) not in self._widest:
            inits = [self.shapes(point) for point in distinct.values()]
            self._widest[key] = jax.eval_shape(lambda *inits: align(inits)[0], *inits)
        return self._widest[key]

    def program(self, points: Sequence[Point]) -> str:
        """Returns a text that is the same for packs that compile the same programs."""
        return json.dumps([self._task_key(points), str(self.widest(points)), len(points)])

    def shapes(self, point: Point) -> AdapterInit:
        """Returns the shapes of the initial adapters of `point`, at true sizes."""
        if (key := self._key(point)) not in self._shapes:
            self._shapes[key] = shapes_of(self._setups.get(point.config), point.config)
        return self._shapes[key]

    def batches(self, points: Sequence[Point]) -> PackBatches:
        """Returns the batches of one run for each task of `points`. The other runs have batches of the same lengths."""
        if (key := self._task_key(points)) not in self._batches:
            runs = self._one_of_each_task(points)
            self._batches[key] = pack_batches([self._setups.get(run) for run in runs], runs)
        return self._batches[key]

    def _one_of_each_task(self, points: Sequence[Point]) -> list[RunConfig]:
        runs = [point.config for point in points]
        return [runs[places[0]] for places in group_by_task(runs)]

    def _task_key(self, points: Sequence[Point]) -> str:
        return "\n".join(sorted({point.config.program_key() for point in points}))

    def predict(self, points: Sequence[Point]) -> tuple[int, bool]:
        """Predicts the bytes that a pack of `points` takes in addition to the base.

        A program is compiled again only for runs with larger states than before.

        Returns:
          The bytes, and whether they come from compiled programs. Otherwise they are an upper bound.
        """
        bound = self._bound(points)
        if len(points) == 1 or bound <= self.room:
            return bound, False
        run, init, runs = points[0].config, self.widest(points), len(points)
        measured, state = self._measured.setdefault(self._task_key(points), {}), self._state_bytes(points)
        if max(measured, default=0) < state:
            base, example = self._base(points), self._example(points)
            with ThreadPoolExecutor() as pool:  # XLA releases Python's lock while it compiles
                fewer, more = pool.map(lambda runs: compiled_bytes(base, run, init, example, runs), MEASURED_RUNS)
            slope = (more - fewer) / (MEASURED_RUNS[1] - MEASURED_RUNS[0])
            measured[state] = fewer - MEASURED_RUNS[0] * slope, slope - state
        fixed, per_run = measured[min(size for size in measured if size >= state)]
        return round(fixed + runs * (per_run + state)), True

    def _bound(self, points: Sequence[Point]) -> int:
        """Returns bytes that a pack of `points` surely does not exceed, whatever its layers keep."""
        key = self._task_key(points), self._state_bytes(points)
        if key not in self._traced:
            run, init = points[0].config, self.widest(points)
            hyper = jax.eval_shape(lambda: hyper_of(run, 1))
            self._traced[key] = _trace(run, self._base(points), init, hyper, self._example(points))
        return SAFETY_FACTOR * len(points) * self._traced[key]

    def _state_bytes(self, points: Sequence[Point]) -> int:
        run = points[0].config
        return state_bytes(program_of(run), self.widest(points), jax.eval_shape(lambda: hyper_of(run, 1)))

    def _base(self, points: Sequence[Point]) -> nnx.Module:
        return common_base([self._setups.get(run) for run in self._one_of_each_task(points)])

    def _example(self, points: Sequence[Point]) -> Batch:
        batches = self.batches(points)
        return batches.example(max(batches.lengths()))

    def _key(self, point: Point) -> str:
        """Returns a text that is the same for points of the same shapes."""
        if point not in self._keys:
            self._keys[point] = point.config.shapes_key()
        return self._keys[point]


def layers_and_width(model: nnx.Module) -> tuple[int, int]:
    """Returns the number of layers of `model` and the width of its hidden states, which its norms have."""
    norms = [weight.shape for path, weight in parameters(model).items() if "layers/" in path and path.endswith("scale")]
    layers, width = max(norms, key=lambda shape: shape[-1])
    return layers, width


def compiled_bytes(base: nnx.Module, run: RunConfig, init: AdapterInit, example: Batch, runs: int) -> int:
    """Returns `pack_bytes` of `runs` runs like `run` with shapes `init`, for batches like `example`.

    It compiles the step from shapes alone.
    """
    pack = (*abstract_pack(run, init, runs), shapes_of_runs(example, runs))
    return pack_bytes(packed_step(program_of(run)).lower(base, *pack).compile(), *pack)


def _trace(run: RunConfig, base: nnx.Module, init: AdapterInit, hyper: Hyper, example: Batch) -> int:
    """Returns `run_bytes` of `run` with shapes `init`, for batches like `example`, leaves ``[runs, batch, ...]``."""
    # The shapes of a rematerialised program do not show its residuals.
    program = dataclasses.replace(program_of(run), remat="none")
    of_one_run = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), example)
    return run_bytes(program, base, init, hyper, of_one_run)


def abstract_pack(run: RunConfig, init: AdapterInit, runs: int) -> tuple[RunState, Any, Hyper]:
    """Returns the shapes that ``pack.stack`` returns for `runs` runs like `run` with shapes `init`."""
    hyper = jax.eval_shape(lambda: hyper_of(run, 1))
    shapes: tuple[RunState, Any, Hyper] = jax.eval_shape(
        functools.partial(stack, program_of(run)), [init] * runs, [hyper] * runs
    )
    return shapes


def shapes_of(setup: Setup, run: RunConfig) -> AdapterInit:
    """Returns the shapes of the initial adapters of `run`, at true sizes."""
    return initial_shapes(setup.base.model, run)
