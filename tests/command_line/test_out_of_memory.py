"""A pack that a device has no room for is halved, and ends where it would have ended."""

import pytest
from command_line.test_sweep import same_results
from helpers.command_line import SWEPT, CommandLine, read, records

# Raises, as XLA does, when the nth step of a pack of two is logged, or its test is scored.
FULL = """
import importlib
module = importlib.import_module("{module}")
owner = getattr(module, "{owner}") if "{owner}" else module
original, calls = owner.{name}, 0
def full(*arguments):
    global calls
    training = next(argument for argument in arguments if hasattr(argument, "pack"))
    calls += 1
    if len(training.pack.points) == 2 and calls == {nth}:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.")
    return original(*arguments)
owner.{name} = full
"""
# What a plan did not foresee, such as programs that write texts.
NO_ROOM = """
from lora_jax.train import compile
compile.budget = lambda: 2**10
"""


def full_at_step(nth: int) -> str:
    return FULL.format(module="lora_jax.train.callbacks", owner="LogMetrics", name="after_step", nth=nth)


TEST_SCORED = FULL.format(module="lora_jax.sweep.finish", owner="", name="test_scores", nth=1)
MOMENTS = {  # the code, the step that its halves begin from, and what the log says
    "compiled": (NO_ROOM, 0, "its programs take"),
    "the first step": (full_at_step(1), 0, "RESOURCE_EXHAUSTED"),
    "a step after a checkpoint": (full_at_step(4), 2, "RESOURCE_EXHAUSTED"),
    "the test is scored": (TEST_SCORED, 6, "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pack_is_halved_and_goes_on(command: CommandLine, swept, tmp_path, moment):
    code, step, why = MOMENTS[moment]
    done = command.after(code, "sweep", *SWEPT, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    same_results(swept[0], tmp_path / "sweep")
    said = next(line for line in done.stdout.splitlines() if "halving" in line)
    assert said.startswith(f"pack 0: out of memory with 2 runs, halving it ({why}")
    assert said.endswith(f"from step {step}, as packs 2 and 3")
    for pack, name in ((2, "rank=4"), (3, "rank=8")):
        assert f"pack {pack}: training 1 run from step {step}" in done.stdout
        held = records(tmp_path / "sweep" / name)
        assert [record["step"] for record in held if "train/loss" in record] == [1, 2, 3, 4, 5, 6]
        assert [record["step"] for record in held if "valid/loss" in record] == [3, 6]
        assert read(tmp_path / "sweep" / name / "summary.json")["pack"] == {"index": pack, "runs": 1}
    assert [pack["runs"] for pack in read(tmp_path / "sweep/plan.json")["packs"]] == [
        ["method=full"],
        ["rank=4"],
        ["rank=8"],
    ]
    assert not list((tmp_path / "sweep").glob("checkpoints/*"))


def test_a_single_run_without_room_fails(command: CommandLine, tmp_path):
    code = full_at_step(1).replace("== 2", "== 1")
    done = command.after(code, "sweep", "rank=4", "baseline=none", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    (summary,) = (tmp_path / "sweep").glob("*/summary.json")
    assert read(summary)["status"] == "failed" and "RESOURCE_EXHAUSTED" in read(summary)["error"]
