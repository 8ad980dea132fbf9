"""Compiles the programs of a pack in parallel: the train step for each padded length, and the evaluators' programs."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax

from lora_jax.train.evaluator import TaskEvaluators
from lora_jax.train.memory import added_bytes, budget, peak_bytes, size
from lora_jax.train.pack import Pack, packed_step, shapes_of_runs


@dataclasses.dataclass(frozen=True)
class CompiledPack:
    """The compiled programs of a pack.

    Attributes:
      steps: the train step for each padded length.
      evaluation: the evaluators' programs, by the number of runs and the key that an evaluator chose.
      seconds: the wall time of compilation.
      peak_bytes: what XLA planned for the largest train step.
      added_bytes: what the largest program takes in addition to its arguments.
    """

    steps: Mapping[int, Any]
    evaluation: Mapping[tuple[int, Hashable], Any]
    seconds: float
    peak_bytes: int
    added_bytes: int


def compile_pack(
    pack: Pack, evaluators: Sequence[TaskEvaluators], options: Mapping[str, Any] | None = None
) -> CompiledPack:
    """Compiles the train step for each padded length and the programs of `evaluators`, in parallel.

    Args:
      pack: the pack, arrays or shapes.
      evaluators: the evaluators of its tasks.
      options: XLA's compiler options.
    """
    start_time = time.monotonic()
    steps = lower_steps(pack)
    evaluation: dict[tuple[int, Hashable], Any] = {}
    for task in evaluators:
        trained = jax.eval_shape(task.select, (pack.state.params, pack.constants))
        for evaluator in task.evaluators.values():
            for key, lower in evaluator.lower(*trained).items():
                if (len(task.runs), key) not in evaluation:
                    evaluation[len(task.runs), key] = lower()
    compiled = compile_all(steps | evaluation, options)
    seconds = time.monotonic() - start_time
    compiled_steps = {length: compiled[length] for length in steps}
    peak = max(map(peak_bytes, compiled_steps.values()))
    added = max(map(added_bytes, compiled.values()))
    return CompiledPack(compiled_steps, {key: compiled[key] for key in evaluation}, seconds, peak, added)


def check_memory(pack: Pack, compiled: CompiledPack) -> None:
    """Checks that the programs of an initialised pack fit.

    Raises:
      MemoryError: XLA plans more bytes for a pack of several runs than are free.
    """
    needed, free = size(pack.state.params) + compiled.added_bytes, budget()
    if len(pack.points) > 1 and needed > free:
        raise MemoryError(f"its programs take {needed / 2**30:.2f} GiB more, and there are {free / 2**30:.2f}")


def lower_steps(pack: Pack) -> dict[int, Any]:
    """Traces and lowers the train step of `pack` for each padded length."""
    step, runs = packed_step(pack.program), len(pack.points)
    return {
        length: step.lower(
            pack.base, pack.state, pack.constants, pack.hyper, shapes_of_runs(pack.batches.example(length), runs)
        )
        for length in pack.batches.lengths()
    }


def compile_all(lowered: Mapping[Any, Any], options: Mapping[str, Any] | None = None) -> dict[Any, Any]:
    """Compiles lowered programs in parallel threads. XLA releases Python's lock while it compiles."""
    compiler_options = dict(options) if options else None
    with concurrent.futures.ThreadPoolExecutor() as pool:
        programs = pool.map(lambda program: program.compile(compiler_options), lowered.values())
        return dict(zip(lowered, programs, strict=True))
