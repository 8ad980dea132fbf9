"""Compiling everything that a pack runs, side by side: the train step for each length, and what evaluates it."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Hashable, Mapping
from typing import Any

from lora_jax.train.evaluator import Evaluator
from lora_jax.train.memory import added_bytes, budget, peak_bytes, size
from lora_jax.train.pack import Pack, of_length, packed_step
from lora_jax.train.setup import Setup


@dataclasses.dataclass(frozen=True)
class CompiledPack:
    """A pack's programs, the seconds that compiling them took, and the bytes that the largest train step plans for."""

    steps: Mapping[int, Any]  # by padded length
    evaluation: Mapping[tuple[str, Hashable], Any]  # by an evaluator's name and its own key
    seconds: float
    peak_bytes: int


def compile_pack(setup: Setup, pack: Pack, evaluators: Mapping[str, Evaluator]) -> CompiledPack:
    """Compiles the train step for each padded length, and what `evaluators` run, side by side.

    Raises MemoryError where a pack of several runs would not fit what is free, as XLA plans it.
    """
    start_time = time.monotonic()
    steps = lower_steps(setup, pack)
    evaluation = {
        (name, key): program
        for name, evaluator in evaluators.items()
        for key, program in evaluator.lower(pack.state.params, pack.constants).items()
    }
    compiled = compile_all(steps | evaluation)
    seconds = time.monotonic() - start_time
    wanted, free = size(pack.state.params) + max(map(added_bytes, compiled.values())), budget()
    if len(pack.points) > 1 and wanted > free:
        raise MemoryError(f"its programs take {wanted / 2**30:.2f} GiB more, and there are {free / 2**30:.2f}")
    compiled_steps = {length: compiled[length] for length in steps}
    peak = max(map(peak_bytes, compiled_steps.values()))
    return CompiledPack(compiled_steps, {key: compiled[key] for key in evaluation}, seconds, peak)


def lower_steps(setup: Setup, pack: Pack) -> dict[int, Any]:
    """Returns the train step of `pack`, traced and lowered, for each padded length."""
    step, example = packed_step(pack.program), pack.batches[0]
    return {
        length: step.lower(setup.base.model, pack.state, pack.constants, pack.hyper, of_length(example, length, 2))
        for length in pack.batches.lengths()
    }


def compile_all(lowered: Mapping[Any, Any]) -> dict[Any, Any]:
    """Compiles lowered programs side by side: XLA compiles outside Python's lock, so one need not wait for the next."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))
