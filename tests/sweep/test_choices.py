"""The plan's choices: fewer programs where training is short, faster ones where it is long."""

import dataclasses

import pytest

from lora_jax.config import CompileConfig
from lora_jax.sweep.choices import GEMM_OPTIONS, Choice, Workload, choose, device_costs

# The default sweep's LoRA pack: MiniLM, four runs of 32 texts.
SHORT = Workload(
    steps={16: 213, 32: 66, 64: 21},
    flops=4 * 32 * 51e6,
    tokens=4 * 32,
    layers=6,
    width=384,
    unroll=1,
    dtype="float32",
    kernel="xla",
    padding_fixed=False,
    unrolled_fits=True,
)
LONG = dataclasses.replace(SHORT, steps={length: 10_000 * count for length, count in SHORT.steps.items()})
# SmolLM2-135M, 8 texts of 512 tokens.
SMOL = dataclasses.replace(
    SHORT, steps={512: 400}, flops=8 * 4 * 134e6, tokens=8, layers=30, width=576, dtype="bfloat16", kernel="pallas"
)
AUTO = CompileConfig()


def predicted(work, **settings):
    return choose(work, CompileConfig(**settings), "gpu")


def seconds(choice):
    return choice.compile_seconds + choice.train_seconds


def test_a_short_pack_has_one_program_that_compiles_fast_and_a_long_one_has_the_fastest_steps():
    short, long = choose(SHORT, AUTO, "gpu"), choose(LONG, AUTO, "gpu")
    assert short[:3] == ("longest", "cublas", "default")
    assert long[:3] == ("all", "triton", "unrolled")


def test_layers_are_unrolled_where_the_steps_repay_it():
    assert choose(SMOL, AUTO, "gpu").layers == "default"
    assert choose(dataclasses.replace(SMOL, steps={512: 10_000}), AUTO, "gpu").layers == "unrolled"


def test_layers_are_not_unrolled_where_they_may_not_fit():
    work = dataclasses.replace(SMOL, steps={512: 10_000}, unrolled_fits=False)
    assert choose(work, AUTO, "gpu").layers == "default"
    assert predicted(work, layers="unrolled").layers == "unrolled"


@pytest.mark.parametrize("work", [SHORT, LONG, dataclasses.replace(SMOL, kernel="xla")])
def test_the_choice_takes_the_least_predicted_time_of_all(work):
    others = [
        predicted(work, lengths=lengths, gemm=gemm, layers=layers)
        for lengths in ("all", "longest")
        for gemm in ("triton", "cublas")
        for layers in ("default", "unrolled")
    ]
    assert seconds(choose(work, AUTO, "gpu")) == min(map(seconds, others))
    assert len({other[:3] for other in others}) == 8


def test_what_is_fixed_by_hand_is_kept():
    assert predicted(SHORT, lengths="all").lengths == "all"
    assert predicted(SHORT, gemm="triton").gemm == "triton"
    assert predicted(LONG, lengths="longest", gemm="cublas", layers="default")[:3] == ("longest", "cublas", "default")


def test_products_by_triton_beside_pallas_are_predicted_as_beside_xla():
    fixed, beside_xla = (predicted(dataclasses.replace(SMOL, kernel=k), gemm="triton") for k in ("pallas", "xla"))
    assert fixed == beside_xla and fixed.gemm == "triton"


def test_dropout_keeps_every_length_because_its_draws_depend_on_the_padding():
    assert choose(dataclasses.replace(SHORT, padding_fixed=True), AUTO, "gpu").lengths == "all"


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("tpu", "bfloat16"), ("gpu", "float64")])
def test_where_nothing_was_measured_xla_compiles_as_it_does(platform, dtype):
    work = dataclasses.replace(SHORT, dtype=dtype)
    assert choose(work, AUTO, platform) == Choice("all", "default", "default", 0.0, 0.0)
    assert choose(work, CompileConfig(lengths="longest"), platform).lengths == "longest"
    assert choose(work, CompileConfig(layers="unrolled"), platform).layers == "unrolled"
    assert GEMM_OPTIONS["default"] == {}


def test_the_model_is_near_what_an_h100_took():
    """Milliseconds a step of SmolLM2-135M and of Llama-3-8B in results/bench, and of MiniLM at 64 tokens."""
    smol = dataclasses.replace(SMOL, kernel="xla", unrolled_fits=False)
    llama = dataclasses.replace(smol, steps={1024: 1}, tokens=4, flops=4 * 4 * 7.5e9, layers=32, width=4096)
    for work, measured in (
        (dataclasses.replace(smol, steps={512: 1}), 0.0242),
        (dataclasses.replace(smol, steps={512: 1}, tokens=32, flops=4 * smol.flops), 0.066),
        (dataclasses.replace(smol, steps={512: 1}, tokens=16, flops=2 * smol.flops), 0.0411),
        (llama, 0.283),
        (dataclasses.replace(SHORT, steps={64: 1}), 0.0126),
    ):
        step = choose(work, CompileConfig(lengths="all", gemm="triton", layers="default"), "gpu").train_seconds
        assert measured / 1.35 < step < measured * 1.35
    unrolled = choose(llama, CompileConfig(gemm="triton", layers="unrolled"), "gpu").train_seconds
    assert 0.260 / 1.1 < unrolled < 0.260 * 1.1


def test_the_model_has_every_way_of_compiling():
    costs = device_costs("gpu")
    assert {(way.gemm, way.layers) for way in costs.compilations if way.kernel == "xla"} == {
        (gemm, layers) for gemm in ("triton", "cublas") for layers in ("default", "unrolled")
    }
    assert {way.layers for way in costs.compilations if way.kernel == "pallas"} == {"default", "unrolled"}
