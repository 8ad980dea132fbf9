"""The step bench: FLOPs, cases, the page, and the command, which continues where it was interrupted."""

import json

import pytest

from lora_jax.bench import ours_step, shapes, step_page
from lora_jax.bench.cases import LoraJaxCase, PeftCase, parse_case, parse_typed
from lora_jax.delta import count, parameters
from lora_jax.errors import UserError

PLAN = """
stages:
  - - {shape: tiny, batch: 2, tokens: 8, runs: 2, ranks: [2, 4]}
    - {shape: tiny, batch: 2, tokens: 8, method: full, measure: compile}
    - {shape: tiny, batch: 2, tokens: 8, attention: cudnn}
  - - {shape: tiny, batch: 2, tokens: 8, runs: 3, ranks: [2, 4], measure: sweep, steps: 5}
"""
# XLA's optimisation does not matter here, so less of it saves time.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


# ---- weights and FLOPs


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_weights_counts_the_kernels_of_the_model(shape):
    weights = parameters(ours_step.abstract(shape))
    blocks = {path: leaf for path, leaf in weights.items() if path.endswith("/kernel") and "/layers/" in path}
    output = weights.get("lm_head/kernel", weights["backbone/embed/embedding"])
    assert shapes.weights(shape) == count(blocks) + count(output)
    assert {path.split("/")[-2] for path in blocks} == set(shapes.linears(shape))


def test_flops_match_a_calculation_by_hand():
    # A block: q 32·32, k and v 32·16, o 32·32, and three of 32·64. Two blocks, and an output layer of 32·96.
    assert shapes.weights("tiny") == 2 * 9216 + 3072
    # 3 tokens see 1, 2 and 3 keys. For each, q·k and the sum of v are 2·32 FLOPs, in 2 layers, thrice with backward.
    attention = 3 * 2 * (1 + 2 + 3) * 2 * 2 * 32
    assert shapes.model_flops("tiny", "lora", 1, 3) == 3 * 4 * 21504 + attention
    assert shapes.model_flops("tiny", "full", 5, 3) == 5 * (3 * 6 * 21504 + attention)
    assert shapes.adapter_flops("tiny", 2, 1, 1) == 6 * 2 * 2 * (64 + 48 + 48 + 64 + 96 + 96 + 96)


def test_weights_of_published_models():
    assert 134e6 < shapes.weights("smollm2_135m") < 135e6
    assert 7.4e9 < shapes.weights("llama3_8b") < 7.6e9  # 8.03e9 with the embedding, which is a lookup


# ---- cases


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base": "nf4"}, "base='nf4': this setting is now base_storage"),
        ({"shape": "huge"}, "smollm2_135m, llama3_8b, tiny"),
        ({"run": 4}, "run"),
        ({"side": "peft", "unroll": 4}, "unroll"),
        ({"measure": "guess"}, "'compile'"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_an_invalid_case_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        parse_case(settings)


def test_cases_are_parsed_from_the_command_line():
    (stage,) = parse_typed(["runs=4 batch=1 ranks=[4,8]", "side=peft mode=compile"])
    assert stage == [LoraJaxCase(runs=4, batch=1, ranks=(4, 8)), PeftCase(mode="compile")]
    with pytest.raises(UserError, match="stage of its own"):
        parse_typed(["measure=sweep", "runs=2"])
    with pytest.raises(UserError, match="stage of its own"):
        parse_typed(["side=peft measure=sweep", "runs=2"])


# ---- the page


def test_the_page_compares_the_time_per_run():
    def row(case, median, **more):
        measured = {
            "device": "card",
            "flops": 1e12,
            "compile_seconds": 1.0,
            "seconds": {"median": median, "min": 0, "max": 9},
        }
        return measured | {"case": case.model_dump(mode="json")} | more

    text = step_page.page(
        [
            row(LoraJaxCase(), 0.02, ceiling={"flops_per_second": 100e12}),
            row(LoraJaxCase(runs=4), 0.04),
            row(LoraJaxCase(batch=1), 0.01),
            row(PeftCase(), 0.2),
            {"case": LoraJaxCase(runs=9).model_dump(mode="json"), "error": "out of\nmemory"},
            {
                "case": LoraJaxCase(runs=2, measure="sweep", steps=50).model_dump(mode="json"),
                "wall_seconds": 4.0,
                "parts": {"imports": 1.0, "train": 3.0},
            },
            {
                "case": PeftCase(runs=1, measure="sweep", steps=50).model_dump(mode="json"),
                "wall_seconds": 16.0,
                "parts": {"imports": 6.0, "train": 10.0},
            },
        ]
    )
    assert "|lora_jax, LoRA, 8 × 512|20.00 (0.00–9000.00)|204,800|50|50.0%|1.0|" in text
    assert "|lora_jax, LoRA, 8 × 512|PEFT eager, LoRA, 8 × 512|10.00|" in text
    assert "|lora_jax, LoRA, 4 × 8 × 512|PEFT eager, LoRA, 8 × 512|20.00|" in text
    assert "|smollm2_135m, 8 × 512|4|40.00 (0.00–9000.00)|2.00|2.00|" in text
    assert "out of memory" in text
    # Importing once, and two runs of ten seconds, in place of the one that was measured.
    assert "|26, from 1 runs in 16.0|imports 6.0, train 10.0|6.5|" in text


# ---- the command


@pytest.mark.slow
def test_an_interrupted_bench_continues_from_its_rows(command, tmp_path):
    plan, rows = tmp_path / "plan.yaml", tmp_path / "step.jsonl"
    plan.write_text(PLAN)
    arguments = ("bench", "step", "--plan", plan, "--out", tmp_path, "--ready-seconds", "600", "--case-seconds", "600")
    done = command(*arguments, XLA_FLAGS=QUICK)
    assert done.returncode == 0, done.stderr
    packed, full, unsupported, sweep = (json.loads(line) for line in rows.read_text().splitlines())

    assert packed["flops"] == shapes.model_flops("tiny", "lora", 4, 8)
    assert packed["adapter_flops"] == shapes.adapter_flops("tiny", 2, 2, 8) + shapes.adapter_flops("tiny", 4, 2, 8)
    assert 0 < packed["seconds"]["min"] <= packed["seconds"]["median"] <= packed["seconds"]["max"]
    assert packed["seconds"]["blocks"] == 10
    assert packed["loss"][1] < packed["loss"][0] < 5  # ln 96 is 4.6
    # bfloat16: every weight, the lookup and the norms.
    assert packed["memory"]["base"] == 2 * (shapes.weights("tiny") + 96 * 32 + 5 * 32)
    assert packed["memory"]["planned"] > packed["memory"]["base"] + packed["memory"]["state"]
    assert packed["ceiling"]["flops_per_second"] > 0
    # Float32 weights and two moments.
    assert full["memory"]["planned"] > 6 * full["memory"]["base"] and "seconds" not in full
    assert "cudnn" in unsupported["error"]
    assert set(sweep["parts"]) == {"imports", "start", "compile scoring", "compile", "train", "score"}
    assert sweep["wall_seconds"] == pytest.approx(sum(sweep["parts"].values()))
    page = (tmp_path / "step_vs_peft-cpu.md").read_text()
    assert "--plan" in page and "2 × 2 × 8 shape=tiny ranks=2+4" in page

    # The file ends within a line. Complete rows remain, and --seconds 0 leaves no time for the others.
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines[:2], lines[3][:40]]))
    done = command(*arguments, "--seconds", "0")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "step_vs_peft-cpu.json").read_text())["rows"]
    assert results == [packed, full]
