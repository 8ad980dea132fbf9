"""How much memory and work a pack takes, before anything is allocated for it.

What XLA keeps besides a program's arguments is its own decision (on a CPU it holds W + A·B for every run, and a
rematerialised layer shows in no shape), so it is asked: the step is compiled, from shapes alone, for two and for four
runs. Between packs of one program the bytes grow evenly from there on. A step of one run says less: XLA drops its axis
of runs, and extrapolating from one and two runs to eight was up to 9% short on a CPU, from two and four 2% off at most.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.config import RunConfig
from lora_jax.data.batches import Batch, TrainBatches
from lora_jax.delta import count, parameters
from lora_jax.methods import AdapterInit, method_of
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import align, of_length, packed_step
from lora_jax.train.plan import Point
from lora_jax.train.setup import setup_of
from lora_jax.train.step import Program, RunState, loss_of, program_of, start_state

USABLE = 0.9  # of what is free: the rest is for what an allocator cannot piece together
# Packs whose shapes ask for bytes that fit this many times over are sure to fit: nothing is compiled to plan them. XLA
# planned 1.3 to 1.8 times those bytes on a CPU.
GENEROUS = 3
MEASURED = (2, 4)  # runs


def run_bytes(program: Program, base: nnx.Module, start: AdapterInit, hyper: Hyper, batch: int, length: int) -> int:
    """Bytes that one more run must take: its state, gradient and update, and what its backward pass keeps.

    What the backward pass keeps is read off the traced function, so XLA's own temporaries are not in it.
    """
    state = jax.eval_shape(functools.partial(start_state, program), start.params, hyper)
    words = np.broadcast_to(np.int32(0), (batch, length))
    labels = words if OBJECTIVES[program.kind].head == "causal" else words[:, 0]
    example = jax.eval_shape(lambda: Batch(words, words == 0, labels))

    def kept(base, params, constants, hyper, batch):
        return jax.vjp(lambda params: loss_of(program, base, params, constants, hyper, batch, 0), params)[1]

    residuals = size(jax.eval_shape(kept, base, start.params, start.constants, hyper, example)) - size(base)
    return size(state) + 2 * size(start.params) + max(residuals, 0)


def pack_bytes(compiled: Any, state: RunState, *others: Any) -> int:
    """Bytes beside the base that a pack's compiled step takes: by XLA's own plan, and the best parameters so far.

    `state` and `others` are its arguments but for the base, of which XLA leaves out what a step does not read.
    """
    return size((state, others)) + size(state.params) + added_bytes(compiled)


def added_bytes(compiled: Any) -> int:
    """Bytes that a compiled program takes beside its arguments."""
    plan = compiled.memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes)


class Costs:
    """What packs of runs would cost, in bytes and in work; what is compiled to find out is compiled once."""

    def __init__(self) -> None:
        self.room = budget()
        self._keys: dict[Point, str] = {}
        self._shapes: dict[str, AdapterInit] = {}
        self._widest: dict[frozenset[str], AdapterInit] = {}
        self._batches: dict[str, TrainBatches] = {}
        self._multiplied: dict[tuple[str, str], int] = {}
        self._steps: dict[Point, int] = {}
        # Of a program, by the `_own_bytes` that each run had: (bytes of a pack, bytes of each run) beside those.
        self._measured: dict[str, dict[int, tuple[float, float]]] = {}

    def steps(self, point: Point) -> int:
        """Optimizer steps of `point`."""
        if point not in self._steps:
            self._steps[point] = point.config.steps_of(self.batches(point.config).steps_per_epoch)
        return self._steps[point]

    def tokens(self, points: Sequence[Point]) -> int:
        """Tokens that `points` train on as one pack, padding counted."""
        batches = self.batches(points[0].config)
        lengths = [batches.length_at(step) for step in range(batches.steps_per_epoch)]
        return int(np.mean(lengths) * batches.batch * len(points) * max(map(self.steps, points)))

    def work(self, points: Sequence[Point]) -> float:
        """What each run does in a pack of `points`, in FLOPs for each token of a batch, summed over its steps.

        A frozen kernel takes 4 FLOPs a parameter (forward, and the gradient of what goes in), a trained one 6; a table
        that is looked up takes none, unless it is the output layer too. In a pack each run has the ranks of the widest
        and the steps of the longest.
        """
        run = points[0].config
        if (key := (run.model.source, run.task.name)) not in self._multiplied:
            model = setup_of(run).base.model
            tied = f"{getattr(model, 'tied', None)}/embedding"
            held = parameters(model).items()
            self._multiplied[key] = count([w for path, w in held if path.endswith("/kernel") or path == tied])
        flops = method_of(run.method).flops_per_token(self._multiplied[key], self.widest(points).params)
        return flops * max(map(self.steps, points))

    def widest(self, points: Iterable[Point]) -> AdapterInit:
        """The shapes that each run has in a pack of `points`."""
        distinct = {self._key(point): point for point in points}
        if (key := frozenset(distinct)) not in self._widest:
            starts = [self.shapes(point) for point in distinct.values()]
            self._widest[key] = jax.eval_shape(lambda *starts: align(starts)[0], *starts)
        return self._widest[key]

    def shapes(self, point: Point) -> AdapterInit:
        """The shapes of what `point` starts from, at its true rank."""
        if (key := self._key(point)) not in self._shapes:
            self._shapes[key] = shapes_of(point.config)
        return self._shapes[key]

    def batches(self, run: RunConfig) -> TrainBatches:
        """Those of one run: their lengths and their number are the same for all of its program."""
        if (key := _program_key(run)) not in self._batches:
            self._batches[key] = setup_of(run).train_batches(run, (run.seed,))
        return self._batches[key]

    def _key(self, point: Point) -> str:
        """The same for points of the same shapes."""
        if point not in self._keys:
            run = point.config
            own = [run.rank, run.targets, run.method.model_dump(exclude={"lr"}), run.static_settings()]
            self._keys[point] = json.dumps(own, sort_keys=True)
        return self._keys[point]

    def predict(self, points: Sequence[Point]) -> tuple[int, bool]:
        """Bytes beside the base of a pack of `points`; and whether XLA was asked, or this is an upper bound.

        XLA is asked once for a program and all ranks up to the widest that has been asked for.
        """
        run, start, runs = points[0].config, self.widest(points), len(points)
        own, measured = _own_bytes(run, start), self._measured.setdefault(_program_key(run), {})
        if max(measured, default=0) < own:
            setup, program = setup_of(run), program_of(run)
            longest = max(self.batches(run).lengths())
            program = dataclasses.replace(program, remat="none")  # its shapes say nothing of what it computes again
            bound = GENEROUS * runs * run_bytes(program, setup.base.model, start, hyper_of(run, 1), run.batch, longest)
            if runs == 1 or bound <= self.room:
                return bound, False
            with ThreadPoolExecutor() as pool:  # XLA compiles outside Python's lock
                fewer, more = pool.map(lambda runs: compiled_bytes(run, start, runs), MEASURED)
            slope = (more - fewer) / (MEASURED[1] - MEASURED[0])
            measured[own] = fewer - MEASURED[0] * slope, slope - own
        fixed, each = measured[min(wide for wide in measured if wide >= own)]
        return round(fixed + runs * (each + own)), True


def compiled_bytes(run: RunConfig, start: AdapterInit, runs: int) -> int:
    """`pack_bytes` of `runs` runs like `run` whose shapes are `start`'s, at their longest; nothing is allocated."""
    batches = setup_of(run).train_batches(run, (run.seed,) * runs)
    example = of_length(batches[0], max(batches.lengths()), 2)
    pack = (*abstract(run, start, runs), example)
    return pack_bytes(packed_step(program_of(run)).lower(setup_of(run).base.model, *pack).compile(), *pack)


def abstract(run: RunConfig, start: AdapterInit, runs: int) -> tuple[RunState, Any, Hyper]:
    """The shapes of what ``pack.stack`` makes of `runs` runs like `run` whose shapes are `start`'s."""
    hyper = jax.eval_shape(lambda: hyper_of(run, 1))
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), (start, hyper))
    (params, constants), hyper = stacked
    return jax.eval_shape(jax.vmap(functools.partial(start_state, program_of(run))), params, hyper), constants, hyper


def shapes_of(run: RunConfig) -> AdapterInit:
    """The shapes of what `run` starts from, at its true rank."""
    return jax.eval_shape(lambda: method_of(run.method).init(setup_of(run).base.model, run))


def budget() -> int:
    """Bytes that packs may take on this device, beside what is loaded."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(USABLE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(USABLE * _free_on_host())


def size(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _own_bytes(run: RunConfig, start: AdapterInit) -> int:
    """What a run takes for its parameters' sake, and so what its rank changes: its state and a gradient."""
    hyper = jax.eval_shape(lambda: hyper_of(run, 1))
    state = jax.eval_shape(functools.partial(start_state, program_of(run)), start.params, hyper)
    return size(state) + 2 * size(start.params)


def _program_key(run: RunConfig) -> str:
    return run.program_key()


def _free_on_host() -> int:
    """What could be allocated without swapping; Linux counts the page cache that it can drop."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        lines = dict(line.split(":") for line in facts.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _itemsize(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
