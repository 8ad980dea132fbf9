"""The fit of the plan's model: rows that a model made give that model back."""

import json

import pytest

from lora_jax.bench.cases import LoraJaxCase
from lora_jax.bench.costs import fit, way_of, work_of
from lora_jax.bench.shapes import adapter_flops, model_flops
from lora_jax.errors import UserError
from lora_jax.sweep.choices import Compilation, DeviceCosts

WAYS = (("triton", "xla", 1.0, 10.0, 2.0), ("cublas", "xla", 1.2, 4.0, 0.5), ("cublas", "pallas", 0.8, 6.0, 0.25))
MODEL = DeviceCosts(
    measured="card",
    flops_per_second={"bfloat16": 5e14},
    element_seconds={"bfloat16": 1e-10},
    layer_seconds=3e-4,
    compilations=tuple(
        Compilation(
            gemm=gemm,
            kernel=kernel,
            layers=layers,
            compile_seconds=once,
            layer_compile_seconds=layer,
            slowdown=factor * slowdown,
        )
        for gemm, kernel, slowdown, once, layer in WAYS
        for layers, factor in (("default", 1.0), ("unrolled", 0.75))
    ),
)
SHAPES = (
    {"batch": 8},
    {"batch": 2, "tokens": 128},
    {"runs": 4},
    {"shape": "llama3_8b", "batch": 2, "tokens": 1024},
)


def rows_of(model: DeviceCosts) -> list[dict]:
    """Returns rows as the step bench writes them, with the times that `model` predicts."""
    rows = []
    for gemm, kernel, *_ in WAYS:
        for unrolled in (False, True):
            layers = {"unroll": 30, "remat": "none"} if unrolled else {"remat": "dots"}
            for shape in SHAPES[: 3 if unrolled or kernel == "pallas" else 4]:
                case = LoraJaxCase(gemm=gemm, kernel=kernel, **layers, **shape)
                texts = case.runs * case.batch
                row = {
                    "case": case.model_dump(mode="json"),
                    "flops": model_flops(case.shape, "lora", texts, case.tokens),
                    "adapter_flops": adapter_flops(case.shape, 16, texts, case.tokens),
                }
                way = next(w for w in model.compilations if (w.gemm, w.kernel, w.layers) == way_of(row))
                step = model.step_seconds(work_of(row), case.tokens, way.slowdown)
                compiled = way.compile_seconds + way.layer_compile_seconds * case.unroll
                rows.append(row | {"seconds": {"median": step}, "compile_seconds": compiled})
    return rows


def test_the_fit_finds_the_model_that_made_the_rows():
    fitted = fit(rows_of(MODEL), "card")
    assert fitted.layer_seconds == pytest.approx(MODEL.layer_seconds, rel=1e-3)
    assert fitted.flops_per_second["bfloat16"] == pytest.approx(5e14, rel=1e-2)
    assert fitted.element_seconds["bfloat16"] == pytest.approx(1e-10, rel=1e-2)
    found = {(way.gemm, way.kernel, way.layers): way for way in fitted.compilations}
    for way in MODEL.compilations:
        other = found[way.gemm, way.kernel, way.layers]
        assert other.slowdown == pytest.approx(way.slowdown, rel=1e-2)
        assert other.compile_seconds == pytest.approx(way.compile_seconds, abs=0.11)
        assert other.layer_compile_seconds == pytest.approx(way.layer_compile_seconds, abs=0.011)


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="3 or more"):
        fit(rows_of(MODEL)[:2], "card")


def test_a_wide_model_has_no_pallas_and_a_loop_that_keeps_all_is_not_unrolled():
    wide = LoraJaxCase(shape="llama3_8b", gemm="cublas", remat="dots", unroll=32).model_dump(mode="json")
    assert way_of({"case": wide, "flops": 1.0, "adapter_flops": 0.0}) == ("cublas", "xla", "default")
    loop = LoraJaxCase(gemm="cublas", unroll=5).model_dump(mode="json")
    assert way_of({"case": loop, "flops": 1.0, "adapter_flops": 0.0}) == ("cublas", "pallas", "default")


def test_the_command_writes_the_model_and_its_page(command, tmp_path):
    rows, model = tmp_path / "rows.jsonl", tmp_path / "model.json"
    measured = [row | {"device": "card", "platform": "gpu"} for row in rows_of(MODEL)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in measured))
    done = command("bench", "costs", rows, "--write", model, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert DeviceCosts.model_validate_json(model.read_text()).measured == "card"
    page = (tmp_path / "costs-gpu.md").read_text()
    assert "|cublas|pallas|unrolled|0.60|6.0|0.25|" in page
    rows.write_text(json.dumps(measured[0] | {"device": "other card"}) + "\n" + json.dumps(measured[1]) + "\n")
    refused = command("bench", "costs", rows, "--write", model, "--out", tmp_path)
    assert refused.returncode == 2 and "rows of one device" in refused.stderr
