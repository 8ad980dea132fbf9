"""The plan's choices: fewer programs where training is short, faster ones where it is long."""

import dataclasses

import pytest

from lora_jax.config import CompileConfig
from lora_jax.sweep.choices import GPU, Choice, Workload, choose, compiler_options

# The default sweep's LoRA pack: MiniLM, four runs of 32 texts.
SHORT = Workload(
    steps={16: 213, 32: 66, 64: 21},
    flops=4 * 32 * 51e6,
    tokens=4 * 32,
    layers=6,
    width=384,
    unroll=1,
    dtype="float32",
    fixed=False,
)
LONG = dataclasses.replace(SHORT, steps={length: 1000 * count for length, count in SHORT.steps.items()})
AUTO = CompileConfig()


def predicted(work, **settings):
    return choose(work, CompileConfig(**settings), "gpu")


def test_a_short_pack_has_one_program_that_compiles_fast_and_a_long_one_has_the_fastest_steps():
    short, long = choose(SHORT, AUTO, "gpu"), choose(LONG, AUTO, "gpu")
    assert (short.lengths, short.gemm) == ("longest", "cublas")
    assert (long.lengths, long.gemm) == ("all", "triton")


@pytest.mark.parametrize("work", [SHORT, LONG])
def test_the_choice_takes_the_least_predicted_time_of_all(work):
    def seconds(choice):
        return choice.compile_seconds + choice.train_seconds

    others = [predicted(work, lengths=n, gemm=g) for n in ("all", "longest") for g in ("triton", "cublas")]
    assert seconds(choose(work, AUTO, "gpu")) == min(map(seconds, others))
    assert len({(other.lengths, other.gemm) for other in others}) == 4


def test_what_is_fixed_by_hand_is_kept():
    assert predicted(SHORT, lengths="all").lengths == "all"
    assert predicted(SHORT, gemm="triton").gemm == "triton"
    assert predicted(LONG, lengths="longest", gemm="cublas")[:2] == ("longest", "cublas")


def test_dropout_keeps_every_length_because_its_draws_depend_on_the_padding():
    assert choose(dataclasses.replace(SHORT, fixed=True), AUTO, "gpu").lengths == "all"


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_devices_without_a_model_compile_as_xla_does(platform):
    assert choose(SHORT, AUTO, platform) == Choice("all", "default", 0.0, 0.0)
    assert choose(SHORT, CompileConfig(lengths="longest"), platform).lengths == "longest"
    assert compiler_options("default", platform) == {}


def test_the_model_is_near_what_an_h100_took():
    """Milliseconds a step of SmolLM2-135M and of Llama-3-8B in results/bench, and of MiniLM at 64 tokens."""
    bfloat16 = dataclasses.replace(SHORT, dtype="bfloat16", layers=30, width=576)
    smol = 4 * 134e6
    for work, measured in (
        (dataclasses.replace(bfloat16, steps={512: 1}, tokens=8, flops=8 * smol), 0.0242),
        (dataclasses.replace(bfloat16, steps={512: 1}, tokens=32, flops=32 * smol), 0.066),
        (dataclasses.replace(bfloat16, steps={512: 1}, tokens=16, flops=16 * smol), 0.0411),
        (
            dataclasses.replace(bfloat16, steps={1024: 1}, tokens=4, flops=4 * 4 * 7.5e9, layers=32, width=4096),
            0.283,
        ),
        (dataclasses.replace(SHORT, steps={64: 1}), 0.0126),
    ):
        step = choose(work, CompileConfig(lengths="all", gemm="triton"), "gpu").train_seconds
        assert measured / 1.3 < step < measured * 1.3


def test_options_are_those_of_the_products():
    assert {compiler_options(gemm, "gpu")["xla_gpu_enable_triton_gemm"] for gemm in GPU.gemms} == {True, False}
