"""The replay of ``stop=median`` over sweeps that trained without it."""

import pytest
from helpers.command_line import CommandLine
from helpers.made_up import run_record, summary, write_metrics

from lora_jax.analysis.stopping import replay
from lora_jax.records import PackRecord, write_run, write_summary


@pytest.fixture
def sweep(tmp_path):
    """Writes a finished pack whose runs validated at steps 10, 20, ..."""

    def sweep(curves, select="accuracy", pack=0):
        for name, curve in curves.items():
            folder = tmp_path / name
            folder.mkdir()
            write_run(folder, run_record(name))
            steps = range(10, 10 * len(curve) + 1, 10)
            write_metrics(folder, f"valid/{select}", dict(zip(steps, curve, strict=True)))
            results = {"metric": "accuracy", "select": select, "steps": steps[-1]}
            write_summary(folder, summary(name=name, pack=PackRecord(index=pack, runs=len(curves)), **results))
        return tmp_path

    return sweep


def test_replay_counts_what_it_would_have_saved(sweep):
    curves = {"a": [0.1, 0.1, 0.1, 0.1, 0.1], "b": [0.5, 0.6, 0.7, 0.8, 0.9], "c": [0.4, 0.5, 0.6, 0.7, 0.8]}
    (pack,) = replay(sweep(curves))
    # At step 30, the third validation, a is below the median of b and c. c, at 0.6, is above that of a and b.
    assert (pack.runs, pack.ended, pack.winner, pack.wrong) == (3, {"a": 30}, "b", False)
    assert pack.saved == pytest.approx(20 / 150)


@pytest.mark.parametrize(("select", "sign"), [("accuracy", 1), ("loss", -1)])
def test_replay_finds_a_winner_that_would_have_been_ended(sweep, select, sign):
    late = [sign * value for value in (0.1, 0.1, 0.1, 0.1, 1.0)]
    steady = [sign * value for value in (0.5, 0.5, 0.5, 0.5, 0.5)]
    (pack,) = replay(sweep({"late": late, "one": steady, "two": steady}, select))
    assert pack.ended == {"late": 30} and pack.winner == "late" and pack.wrong


def test_runs_that_ended_still_count(sweep):
    """Otherwise the median would climb with each run that is ended, until one were left."""
    curves = {name: [level] * 9 for name, level in zip("abcdef", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True)}
    (pack,) = replay(sweep(curves))
    assert pack.ended == {"a": 30, "b": 30, "c": 30}


def test_too_few_runs_and_early_validations_are_left_alone(sweep):
    sweep({"a": [0.1] * 5, "b": [0.9] * 5}, pack=0)
    folder = sweep({"c": [0.1] * 3, "d": [0.9] * 3, "e": [0.8] * 3}, pack=1)
    (pack,) = replay(folder)  # their third validation is their last
    assert (pack.pack, pack.ended) == (1, {})


def test_the_command_prints_each_pack_and_the_total(command: CommandLine, sweep):
    folder = sweep({"a": [0.1] * 5, "b": [0.9] * 5, "c": [0.8] * 5})
    done = command("stopping", folder)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 runs ended, 13% of steps saved; b, which won, not among them" in done.stdout
    assert done.stdout.endswith("would have been ended in 0 of 1 packs\n")
    missing = command("stopping", folder / "missing")
    assert missing.returncode == 2 and missing.stderr.startswith("error: ")
