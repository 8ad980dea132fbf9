"""``stop=median``: the rule, and sweeps with it."""

import re

import pytest
from helpers.command_line import CommandLine, read, records

from lora_jax.analysis.stopping import replay
from lora_jax.train.stopping import MedianRule, below_median


def test_below_median_compares_with_the_median_of_the_others():
    assert below_median("accuracy", [0.5, 0.6, 0.7, 0.8]) == [True, True, False, False]  # medians 0.7, 0.7, 0.6, 0.6
    assert below_median("loss", [0.5, 0.6, 0.7, 0.8]) == [False, False, True, True]
    assert below_median("accuracy", [0.5, 0.5, 0.5]) == [False] * 3
    assert below_median("accuracy", [0.1, 0.9]) == [False] * 2  # one other run is too few
    assert below_median("accuracy", [0.1, 0.8, None, 0.9]) == [True, False, False, False]
    assert below_median("accuracy", [0.1, float("nan"), 0.9]) == [False] * 3


def record_validations(rule, steps, values=(0.1, 0.8, 0.9)):
    for step in steps:
        for run, value in enumerate(values):
            rule.record(run, step, value)
    return rule


def test_a_run_is_judged_from_its_third_validation_on():
    rule = MedianRule("accuracy", 3)
    assert [record_validations(rule, [step]).ended_at(step, [True] * 3) for step in (10, 20, 30)] == [[], [], [0]]


def test_only_active_runs_that_were_just_validated_are_ended():
    rule = record_validations(MedianRule("accuracy", 3), (10, 20, 30))
    assert rule.ended_at(30, [False, True, True]) == []
    assert rule.ended_at(40, [True] * 3) == []
    assert rule.ended_at(30, [True] * 3) == [0]


def test_the_best_value_counts_not_the_last():
    rule = MedianRule("loss", 3)
    assert [rule.record(0, step, value) for step, value in ((1, 0.5), (2, 0.4), (3, 0.9))] == [True, True, False]
    assert rule.best == [0.4, None, None] and rule.validations == [3, 0, 0]


def test_a_restored_rule_continues_as_the_original():
    original = record_validations(MedianRule("accuracy", 3), (10, 20))
    restored = MedianRule("accuracy", 3)
    for run in range(3):
        restored.restore(run, original.best[run], original.validations[run])
    assert record_validations(restored, (30,)).ended_at(30, [True] * 3) == [0]


OVERRIDES = (
    "rank=4",
    "lr=1e-6,1e-2,2e-2",
    "steps=12",
    "eval_every=2",
    "log_every=1",
    "checkpoint_every=2",
    "baseline=none",
)


@pytest.fixture(scope="module")
def sweep_without_rule(command: CommandLine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unstopped") / "sweep"
    done = command.sweep(folder, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    return folder


ALWAYS_REPACK = "from lora_jax.train import loop; loop.Training.should_repack = lambda self: any(self.progress.stopped)"


@pytest.mark.slow
@pytest.mark.parametrize("code", ["", ALWAYS_REPACK], ids=["one pack", "repacked"])
def test_a_run_that_falls_below_the_median_is_ended(command: CommandLine, sweep_without_rule, tmp_path, code):
    sweep = tmp_path / "sweep"
    done = command.after(code, "sweep", *OVERRIDES, "stop=median", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr
    (expected,) = replay(sweep_without_rule)
    assert "lr=1e-06" in expected.ended
    summaries = {name: read(sweep / name / "summary.json") for name in ("lr=1e-06", "lr=0.01", "lr=0.02")}
    for name, summary in summaries.items():
        complete, stopped = records(sweep_without_rule / name), records(sweep / name)
        end = expected.ended.get(name, 12)
        assert (summary["status"], summary["steps"]) == ("stopped" if name in expected.ended else "finished", end)
        assert summary["error"] is None and summary["adapter_bytes"] > 0 and 0 <= summary["test"]["accuracy"] <= 1
        assert f"pack 0: {name} is below the median, ended at step {end}" in done.stdout or end == 12
        # A run equals the run without the rule until it ends. The other runs are equal throughout.
        scored = [{r["step"]: r["valid/loss"] for r in lines if "valid/loss" in r} for lines in (complete, stopped)]
        assert scored[1] == pytest.approx({step: loss for step, loss in scored[0].items() if step <= end}, abs=1e-4)
        assert [r["step"] for r in stopped if "train/loss" in r] == list(range(1, end + 1))
    assert "stopped" in (sweep / "report/table.md").read_text()
    assert ("continue in their own pack" in done.stdout) == bool(code)


@pytest.mark.slow
def test_a_stopped_run_stays_stopped_after_a_crash(command: CommandLine, sweep_without_rule, tmp_path):
    sweep = tmp_path / "sweep"
    overrides = [*OVERRIDES, "stop=median", f"hydra.sweep.dir={sweep}"]
    # The process is killed in step 9: three runs train to step 6, and two from there. The checkpoint of step 8 may be
    # incomplete. Orbax starts a checkpoint when the last is complete, so that of step 6, where a run ended, exists.
    killed = command.killed(("lora_jax.train.callbacks", "record.train_figures", 3 * 6 + 2 * 3), "sweep", *overrides)
    assert killed.returncode != 0
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert re.search("training 3 runs from step [68]\n", done.stdout)
    (expected,) = replay(sweep_without_rule)
    for name in ("lr=1e-06", "lr=0.01", "lr=0.02"):
        assert read(sweep / name / "summary.json")["steps"] == expected.ended.get(name, 12)
