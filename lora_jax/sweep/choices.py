"""Chooses how a pack is compiled, so that compiling and training together take the least time.

The predictions are a model of a device, ``gpu_costs.json``, which ``python -m experiments.bench costs`` fits to steps
that were measured (results/bench/costs-gpu.md). They depend on the settings and the data alone, so a sweep that is
planned twice has the same choices. On devices without a model nothing is chosen: a CPU's arithmetic costs more than its
compiler, and TPUs were not measured.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lora_jax.config import CompileConfig
from lora_jax.config.settings import Settings
from lora_jax.records.plan import Gemm, Layers, Lengths

Kernel = Literal["xla", "pallas"]

COSTS = {"gpu": Path(__file__).with_name("gpu_costs.json")}  # by JAX's name of the platform
GEMM_OPTIONS: dict[Gemm, dict[str, Any]] = {
    "default": {},
    # Triton's products are chosen among hundreds of candidates, which are compiled and timed one by one.
    "triton": {"xla_gpu_enable_triton_gemm": True},
    "cublas": {"xla_gpu_enable_triton_gemm": False},
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of a pack.

    Attributes:
      steps: how many steps have batches of each padded length.
      flops: FLOPs of a step, of all runs, for each token of its padded length.
      tokens: tokens of a step, of all runs, for each token of its padded length.
      layers: layers of the model.
      width: the width of its hidden states.
      unroll: layers in the body of the compiled loop.
      dtype: the dtype of matrix products.
      kernel: what applies low-rank pairs.
      padding_fixed: whether padding may not change, because dropout draws for whole arrays.
      unrolled_fits: whether the device surely has the memory for layers that are unrolled and keep all they compute.
    """

    steps: Mapping[int, float]
    flops: float
    tokens: float
    layers: int
    width: int
    unroll: int
    dtype: str
    kernel: Kernel
    padding_fixed: bool
    unrolled_fits: bool


class Compilation(Settings):
    """What a way of compiling takes.

    Attributes:
      gemm: what computes matrix products.
      kernel: what applies low-rank pairs.
      layers: ``default`` is a loop over layers that computes again what it did not keep; ``unrolled`` is neither.
      compile_seconds: of the programs for one padded length, apart from their layers.
      layer_compile_seconds: of each layer in the body of the loop.
      slowdown: the time of all but a step's products, relative to that of Triton, XLA and the loop.
    """

    gemm: Gemm
    kernel: Kernel
    layers: Layers
    compile_seconds: float
    layer_compile_seconds: float
    slowdown: float


class DeviceCosts(Settings):
    """What a device takes.

    Attributes:
      measured: on what, and when.
      flops_per_second: what the products of a step reach, by dtype.
      element_seconds: of all else that a step computes, for each token, layer and element of a hidden state.
      layer_seconds: the least time of one layer in a step, forward and backward: a GPU runs a hundred kernels for it.
      compilations: the ways of compiling.
    """

    measured: str
    flops_per_second: dict[str, float]
    element_seconds: dict[str, float]
    layer_seconds: float
    compilations: tuple[Compilation, ...]

    def step_seconds(self, work: Workload, length: int, slowdown: float = 1.0) -> float:
        """Returns the time of a step with texts of `length` tokens, with this `Compilation.slowdown`."""
        products = work.flops * length / self.flops_per_second[work.dtype]
        elements = work.tokens * length * work.layers * work.width
        rest = work.layers * self.layer_seconds + elements * self.element_seconds[work.dtype]
        return products + slowdown * rest


class Choice(NamedTuple):
    """How a pack is compiled, and what was predicted for it; seconds are 0 on devices without a model.

    Attributes:
      lengths: whether batches are padded to all lengths that occur, or to the longest alone.
      gemm: the compiler of matrix products; ``default`` leaves it to XLA.
      layers: ``default`` is as ``model.unroll`` and ``model.remat`` say; ``unrolled``: all layers one after another,
        and nothing is computed again.
      compile_seconds: of all programs, with nothing in the cache.
      train_seconds: of all steps.
    """

    lengths: Lengths
    gemm: Gemm
    layers: Layers
    compile_seconds: float
    train_seconds: float


@functools.cache
def device_costs(platform: str) -> DeviceCosts | None:
    """Returns the costs of a device, or None if it was not measured. `platform` is JAX's name of it."""
    path = COSTS.get(platform)
    return DeviceCosts.model_validate_json(path.read_text()) if path else None


def choose(work: Workload, settings: CompileConfig, platform: str) -> Choice:
    """Returns the choice with the least predicted time, of those that `settings` allow.

    Args:
      work: the work of the pack.
      settings: what is fixed by hand.
      platform: JAX's name of the device's platform.
    """
    lengths: list[Lengths] = ["all", "longest"] if settings.lengths == "auto" else [settings.lengths]
    if work.padding_fixed:
        lengths = ["all"]
    device = device_costs(platform)
    if device is None or work.dtype not in device.flops_per_second:
        return Choice(lengths[0], "default", "unrolled" if settings.layers == "unrolled" else "default", 0.0, 0.0)
    ways = _allowed(device, work, settings)
    choices = [_predict(work, length, way, device) for length, way in itertools.product(lengths, ways)]
    return min(choices, key=lambda choice: choice.compile_seconds + choice.train_seconds)


def _allowed(device: DeviceCosts, work: Workload, settings: CompileConfig) -> list[Compilation]:
    """Returns the ways of compiling that `settings` allow; those of XLA where the kernel's were not measured."""
    layers: tuple[str, ...] = (settings.layers,)
    if settings.layers == "auto":
        layers = ("default", "unrolled") if work.unrolled_fits else ("default",)
    ways = [way for way in device.compilations if settings.gemm in ("auto", way.gemm) and way.layers in layers]
    return [way for way in ways if way.kernel == work.kernel] or [way for way in ways if way.kernel == "xla"]


def _predict(work: Workload, lengths: Lengths, way: Compilation, device: DeviceCosts) -> Choice:
    longest = max(work.steps)
    steps = {longest: sum(work.steps.values())} if lengths == "longest" else work.steps
    body = work.layers if way.layers == "unrolled" else work.unroll
    program = way.compile_seconds + way.layer_compile_seconds * body
    train = sum(count * device.step_seconds(work, length, way.slowdown) for length, count in steps.items())
    return Choice(lengths, way.gemm, way.layers, len(steps) * program, train)
