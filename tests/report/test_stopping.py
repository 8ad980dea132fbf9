"""``stop=median``: the rule, what it does to a sweep, and how often it would have been wrong."""

import json
import re

import pytest
from helpers.command_line import CommandLine, read, records

from lora_jax.stopping import behind, replay


def test_the_rule():
    assert behind("accuracy", [0.5, 0.6, 0.7, 0.8]) == [True, True, False, False]  # medians 0.7, 0.7, 0.6, 0.6
    assert behind("loss", [0.5, 0.6, 0.7, 0.8]) == [False, False, True, True]
    assert behind("accuracy", [0.5, 0.5, 0.5]) == [False] * 3
    assert behind("accuracy", [0.1, 0.9]) == [False] * 2  # one other is no median
    assert behind("accuracy", [0.1, 0.8, None, 0.9]) == [True, False, False, False]
    assert behind("accuracy", [0.1, float("nan"), 0.9]) == [False] * 3


@pytest.fixture
def sweep(tmp_path):
    """Writes a finished pack whose runs validated at steps 10, 20, ..."""

    def sweep(curves, select="accuracy", pack=0):
        for name, curve in curves.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "run.json").write_text(json.dumps({"name": name, "config": {}}))
            steps = [10 * (i + 1) for i in range(len(curve))]
            lines = [{"step": s, "tokens": s, f"valid/{select}": value} for s, value in zip(steps, curve, strict=True)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            summary = {"name": name, "status": "finished", "method": "lora", "metric": "accuracy", "select": select}
            summary |= {"steps": steps[-1], "pack": {"index": pack, "runs": len(curves)}}
            (folder / "summary.json").write_text(json.dumps(summary))
        return tmp_path

    return sweep


def test_replay_counts_what_it_would_have_saved(sweep):
    curves = {"a": [0.1, 0.1, 0.1, 0.1, 0.1], "b": [0.5, 0.6, 0.7, 0.8, 0.9], "c": [0.4, 0.5, 0.6, 0.7, 0.8]}
    (found,) = replay(sweep(curves))
    # At step 30, its third validation: a is behind the median of b and c; c, at 0.6, is ahead of that of a and b.
    assert (found.runs, found.ended, found.winner, found.wrong) == (3, {"a": 30}, "b", False)
    assert found.saved == pytest.approx(20 / 150)


@pytest.mark.parametrize(("select", "sign"), [("accuracy", 1), ("loss", -1)])
def test_replay_knows_when_it_would_have_been_wrong(sweep, select, sign):
    late = [sign * value for value in (0.1, 0.1, 0.1, 0.1, 1.0)]
    steady = [sign * value for value in (0.5, 0.5, 0.5, 0.5, 0.5)]
    (found,) = replay(sweep({"late": late, "one": steady, "two": steady}, select))
    assert found.ended == {"late": 30} and found.winner == "late" and found.wrong


def test_runs_that_ended_still_count(sweep):
    """Or the median would climb with each, and one would be left."""
    curves = {name: [level] * 9 for name, level in zip("abcdef", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True)}
    (found,) = replay(sweep(curves))
    assert found.ended == {"a": 30, "b": 30, "c": 30}


def test_too_few_runs_and_early_validations_are_left_alone(sweep):
    sweep({"a": [0.1] * 5, "b": [0.9] * 5}, pack=0)
    folder = sweep({"c": [0.1] * 3, "d": [0.9] * 3, "e": [0.8] * 3}, pack=1)
    (found,) = replay(folder)  # their third validation is their last
    assert (found.pack, found.ended) == (1, {})


ASKED = (
    "rank=4",
    "lr=1e-6,1e-2,2e-2",
    "steps=12",
    "eval_every=2",
    "log_every=1",
    "checkpoint_every=2",
    "baseline=none",
)


@pytest.fixture(scope="module")
def undisturbed(command: CommandLine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unstopped") / "sweep"
    done = command.sweep(folder, *ASKED)
    assert done.returncode == 0, done.stderr
    return folder


ALWAYS = "from lora_jax.train import loop; loop.Loop._worth_parting = lambda self: any(self.progress.stopped)"


@pytest.mark.parametrize("code", ["", ALWAYS], ids=["together", "parted"])
def test_a_run_that_falls_behind_is_ended(command: CommandLine, undisturbed, tmp_path, code):
    sweep = tmp_path / "sweep"
    done = command.after(code, "sweep", *ASKED, "stop=median", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr
    (expected,) = replay(undisturbed)
    assert "lr=1e-06" in expected.ended
    statuses = {name: read(sweep / name / "summary.json") for name in ("lr=1e-06", "lr=0.01", "lr=0.02")}
    for name, summary in statuses.items():
        whole, held = records(undisturbed / name), records(sweep / name)
        end = expected.ended.get(name, 12)
        assert (summary["status"], summary["steps"]) == ("stopped" if name in expected.ended else "finished", end)
        assert summary["error"] is None and summary["adapter_bytes"] > 0 and 0 <= summary["test"]["accuracy"] <= 1
        assert f"pack 0: {name} is behind the median, ended at step {end}" in done.stdout or end == 12
        # Up to there it is the run that it would have been; the others are so to their end.
        scored = [{r["step"]: r["valid/loss"] for r in lines if "valid/loss" in r} for lines in (whole, held)]
        assert scored[1] == pytest.approx({step: loss for step, loss in scored[0].items() if step <= end}, abs=1e-4)
        assert [r["step"] for r in held if "train/loss" in r] == list(range(1, end + 1))
    assert "stopped" in (sweep / "report/table.md").read_text()
    assert ("going on with them alone" in done.stdout) == bool(code)


def test_a_stopped_run_stays_stopped_after_a_crash(command: CommandLine, undisturbed, tmp_path):
    sweep = tmp_path / "sweep"
    asked = [*ASKED, "stop=median", f"hydra.sweep.dir={sweep}"]
    # In step 9: three runs to step 6, and two from there. The checkpoint of step 8 may still be being written, but
    # orbax begins none before the last is whole, so that of step 6, where the run ended, is there.
    killed = command.killed(("lora_jax.train.loop", "record.train_figures", 3 * 6 + 2 * 3), "sweep", *asked)
    assert killed.returncode != 0
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert re.search("training 3 runs from step [68]\n", done.stdout)
    (expected,) = replay(undisturbed)
    for name in ("lr=1e-06", "lr=0.01", "lr=0.02"):
        assert read(sweep / name / "summary.json")["steps"] == expected.ended.get(name, 12)


def test_the_command(command: CommandLine, sweep):
    folder = sweep({"a": [0.1] * 5, "b": [0.9] * 5, "c": [0.8] * 5})
    done = command("stopping", folder)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 runs ended, 13% of steps saved; b, which won, not among them" in done.stdout
    assert done.stdout.endswith("would have been ended in 0 of 1 packs\n")
    missing = command("stopping", folder / "missing")
    assert missing.returncode == 2 and missing.stderr.startswith("error: ")
