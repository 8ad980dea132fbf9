"""A pack that runs out of memory is halved, and gives the same results."""

import pytest
from command_line.test_sweep import assert_same_results
from helpers.command_line import SWEPT, CommandLine, read, records

# Raises XLA's error at the nth call of a function for a pack of two runs.
RAISE_OUT_OF_MEMORY = """
import importlib
module = importlib.import_module("{module}")
owner = getattr(module, "{owner}") if "{owner}" else module
original, calls = owner.{name}, 0
def raising(*arguments):
    global calls
    training = next(argument for argument in arguments if hasattr(argument, "pack"))
    calls += 1
    if len(training.pack.points) == 2 and calls == {nth}:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.")
    return original(*arguments)
owner.{name} = raising
"""
# Compiled programs that need more memory than planned.
SMALL_BUDGET = """
from lora_jax.train import compile
compile.budget = lambda: 2**10
"""


def out_of_memory_at_step(nth: int) -> str:
    return RAISE_OUT_OF_MEMORY.format(module="lora_jax.train.callbacks", owner="LogMetrics", name="after_step", nth=nth)


TEST_SCORED = RAISE_OUT_OF_MEMORY.format(module="lora_jax.sweep.finish", owner="", name="test_scores", nth=1)
MOMENTS = {  # the code, the first step of the halves, and a fragment of the log
    "compiled": (SMALL_BUDGET, 0, "its programs take"),
    "the first step": (out_of_memory_at_step(1), 0, "RESOURCE_EXHAUSTED"),
    "a step after a checkpoint": (out_of_memory_at_step(4), 2, "RESOURCE_EXHAUSTED"),
    "the test is scored": (TEST_SCORED, 6, "RESOURCE_EXHAUSTED"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pack_is_halved_and_continues(command: CommandLine, swept, tmp_path, moment):
    code, step, reason = MOMENTS[moment]
    done = command.after(code, "sweep", *SWEPT, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert_same_results(swept[0], tmp_path / "sweep")
    message = next(line for line in done.stdout.splitlines() if "halving" in line)
    assert message.startswith(f"pack 0: out of memory with 2 runs, halving it ({reason}")
    assert message.endswith(f"from step {step}, as packs 2 and 3")
    for pack, name in ((2, "rank=4"), (3, "rank=8")):
        assert f"pack {pack}: training 1 run from step {step}" in done.stdout
        metrics = records(tmp_path / "sweep" / name)
        assert [record["step"] for record in metrics if "train/loss" in record] == [1, 2, 3, 4, 5, 6]
        assert [record["step"] for record in metrics if "valid/loss" in record] == [3, 6]
        assert read(tmp_path / "sweep" / name / "summary.json")["pack"] == {"index": pack, "runs": 1}
    assert [pack["runs"] for pack in read(tmp_path / "sweep/plan.json")["packs"]] == [
        ["method=full"],
        ["rank=4"],
        ["rank=8"],
    ]
    assert not list((tmp_path / "sweep").glob("checkpoints/*"))


@pytest.mark.slow
def test_a_single_run_out_of_memory_fails(command: CommandLine, tmp_path):
    code = out_of_memory_at_step(1).replace("== 2", "== 1")
    done = command.after(code, "sweep", "rank=4", "baseline=none", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    (summary,) = (tmp_path / "sweep").glob("*/summary.json")
    assert read(summary)["status"] == "failed" and "RESOURCE_EXHAUSTED" in read(summary)["error"]
