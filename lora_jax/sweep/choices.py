"""Chooses how a pack is compiled, so that compiling and training together take the least time.

The predictions are a model of an NVIDIA GPU, fitted to an H100 (results/bench/README.md). They depend on the settings
and the data alone, so a sweep that is planned twice has the same choices. On other devices nothing is chosen: a CPU's
arithmetic costs more than its compiler, and TPUs were not measured.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_jax.config import CompileConfig
from lora_jax.records.plan import Gemm, Lengths


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
      fixed: whether padding may not change, because dropout draws for whole arrays.
    """

    steps: Mapping[int, float]
    flops: float
    tokens: float
    layers: int
    width: int
    unroll: int
    dtype: str
    fixed: bool


@dataclasses.dataclass(frozen=True)
class Gemms:
    """How the compiler finds matrix products.

    Attributes:
      options: the compiler options.
      compile_seconds: of the programs for one padded length, apart from their layers.
      layer_compile_seconds: of each layer in the body of the loop.
      slowdown: a step's time, relative to the fastest products.
    """

    options: Mapping[str, Any]
    compile_seconds: float
    layer_compile_seconds: float
    slowdown: float


@dataclasses.dataclass(frozen=True)
class DeviceCosts:
    """What a device takes.

    Attributes:
      flops_per_second: what the products of a step reach, by dtype.
      element_seconds: of all else that a step computes, for each token, layer and element of a hidden state.
      layer_seconds: the least time of one layer in a step, forward and backward: a GPU runs a hundred kernels for it.
      gemms: by name.
    """

    flops_per_second: Mapping[str, float]
    element_seconds: Mapping[str, float]
    layer_seconds: float
    gemms: Mapping[Gemm, Gemms]


# One H100, 16 CPU cores, jax 0.11.2 (results/bench/README.md).
GPU = DeviceCosts(
    flops_per_second={"bfloat16": 5.5e14, "float32": 2.0e14, "float64": 4e13},
    element_seconds={"bfloat16": 1.4e-10, "float32": 4.5e-10, "float64": 9e-10},
    layer_seconds=3e-4,
    gemms={
        # Triton's products are chosen among hundreds of candidates, which are compiled and timed one by one.
        "triton": Gemms({"xla_gpu_enable_triton_gemm": True}, 12.0, 0.6, 1.0),
        "cublas": Gemms({"xla_gpu_enable_triton_gemm": False}, 4.5, 0.6, 1.1),
    },
)
DEVICES = {"gpu": GPU}  # by JAX's name of the platform


class Choice(NamedTuple):
    """How a pack is compiled, and what was predicted for it; seconds are 0 on devices without a model.

    Attributes:
      lengths: whether batches are padded to all lengths that occur, or to the longest alone.
      gemm: the compiler of matrix products, a key of `DeviceCosts.gemms`; ``default`` leaves it to XLA.
      compile_seconds: of all programs, with nothing in the cache.
      train_seconds: of all steps.
    """

    lengths: Lengths
    gemm: Gemm
    compile_seconds: float
    train_seconds: float


def choose(work: Workload, settings: CompileConfig, platform: str) -> Choice:
    """Returns the choice with the least predicted time, of those that `settings` allow.

    Args:
      work: the work of the pack.
      settings: what is fixed by hand.
      platform: JAX's name of the device's platform.
    """
    options: list[Lengths] = ["all", "longest"] if settings.lengths == "auto" else [settings.lengths]
    if work.fixed:
        options = ["all"]
    device = DEVICES.get(platform)
    if device is None:
        return Choice(options[0], "default", 0.0, 0.0)
    gemms: list[Gemm] = list(device.gemms) if settings.gemm == "auto" else [settings.gemm]
    choices = [_predict(work, lengths, gemm, device) for lengths, gemm in itertools.product(options, gemms)]
    return min(choices, key=lambda choice: choice.compile_seconds + choice.train_seconds)


def compiler_options(gemm: Gemm, platform: str) -> dict[str, Any]:
    """Returns XLA's options for a choice."""
    return {} if gemm == "default" else dict(DEVICES[platform].gemms[gemm].options)


def _predict(work: Workload, lengths: Lengths, gemm: Gemm, device: DeviceCosts) -> Choice:
    costs, longest = device.gemms[gemm], max(work.steps)
    steps = {longest: sum(work.steps.values())} if lengths == "longest" else work.steps
    program = costs.compile_seconds + costs.layer_compile_seconds * work.unroll
    elements = work.tokens * work.layers * work.width
    token = work.flops / device.flops_per_second[work.dtype] + elements * device.element_seconds[work.dtype]
    train = sum(count * (work.layers * device.layer_seconds + token * length) for length, count in steps.items())
    return Choice(lengths, gemm, len(steps) * program, costs.slowdown * train)
