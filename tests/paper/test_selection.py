"""The rules that turn runs into figures, on made-up records."""

import math

import pytest
from helpers.paper_results import recipe, result, train_all

from lora_jax.errors import UserError
from lora_jax.paper.protocol import Protocol
from lora_jax.paper.selection import best_epoch, best_run, summarise

PROTOCOL = Protocol(recipe())
RUN = PROTOCOL.due({})[0]


def validated(**scores):
    return [result(RUN, name=name, valid={"accuracy": score}) for name, score in scores.items()]


def test_best_epoch_is_the_first_of_the_best():
    assert best_epoch(result(RUN)) == 20
    assert best_epoch(result(RUN, validations=((10, 0.5), (20, 0.5)))) == 10
    assert best_epoch(result(RUN, validations=((10, math.nan), (20, 0.1)))) == 20
    assert best_epoch(result(RUN, validations=((10, math.nan),))) is None
    assert best_epoch(result(RUN, select="loss", validations=((10, 1.2), (20, 1.1), (30, 1.3)))) == 20


def test_best_run_is_chosen_by_validation_among_finished_runs():
    assert best_run(validated(a=0.5, b=0.7, c=0.7)).name == "b"
    assert best_run([*validated(a=0.5), result(RUN, name="d", status="diverged", valid={"accuracy": 0.9})]).name == "a"
    assert best_run([*validated(a=0.5), result(RUN, name="n", valid={"accuracy": math.nan})]).name == "a"
    losses = [result(RUN, name=name, select="loss", valid={"loss": loss}) for name, loss in (("a", 1.2), ("b", 1.1))]
    assert best_run(losses).name == "b"
    assert best_run([]) is None


def test_glue_has_the_median_and_e2e_the_mean():
    scores = [70.0, 60.0, 65.0, 90.0, 66.0]
    assert summarise(scores, "median").value == 66
    assert summarise(scores, "mean").value == pytest.approx(70.2)
    assert summarise(scores, "median").spread == pytest.approx(11.6276, abs=1e-4)  # sample standard deviation
    assert summarise([66.0], "mean").spread is None and summarise([], "median") is None


def test_the_rate_with_the_best_validation_is_trained_with_every_seed():
    results = {run.name: result(run) for run in PROTOCOL.due({})}
    tuned = {name: r for name, r in results.items() if r.stage == "tune"}
    assert [r.lr for r in tuned.values()] == [1e-4, 2e-4, 1e-4, 2e-4] and {r.seed for r in tuned.values()} == {0}
    best = next(name for name, r in tuned.items() if r.task == "rte" and r.lr == 2e-4)
    results[best] = results[best].replace(valid={"accuracy": 0.8})
    full = PROTOCOL.recipe.rows[0]
    assert PROTOCOL.chosen_rate(full, "rte", results) == 2e-4 and PROTOCOL.chosen_rate(full, "mnli", results) == 1e-4
    trained = [run for run in PROTOCOL.due(results) if run.stage == "train" and run.task == "rte" and run.row == "full"]
    assert [(run.lr, run.seed) for run in trained] == [(2e-4, 1), (2e-4, 2), (2e-4, 3)]
    assert all("test=false" in run.overrides for run in PROTOCOL.due({}) if run.stage == "tune")
    assert not any("test=false" in run.overrides for run in trained)


def test_no_rate_is_chosen_before_all_are_over_or_if_none_finished():
    due = [run for run in PROTOCOL.due({}) if run.stage == "tune"]
    full = PROTOCOL.recipe.rows[0]
    assert PROTOCOL.chosen_rate(full, "mnli", {due[0].name: result(due[0])}) is None
    diverged = {run.name: result(run, status="diverged") for run in due}
    with pytest.raises(UserError, match="learning rates of full on mnli: no run has finished"):
        PROTOCOL.due(diverged)


def test_a_task_starts_from_the_best_adapter_of_another():
    assert not [run for run in PROTOCOL.due({}) if run.row == "LoRA" and run.task == "rte"]
    results = train_all(PROTOCOL, lambda run: {"valid": {"accuracy": 0.9 if run.seed == 2 else 0.5}})
    started = [run for run in PROTOCOL.due(results) if run.row == "LoRA" and run.task == "rte"]
    assert {run.start for run in started} == {"train/mnli/lora/seed=2"} and len(started) == 3
    assert len(results) == len(PROTOCOL.all_runs())


def test_later_settings_replace_earlier_ones():
    def overrides(protocol, task="rte"):
        return next(run.overrides for run in protocol.all_runs() if run.row == "LoRA" and run.task == task)

    shared = ("task=rte", "model=roberta_base", "dropout=0.1")
    assert overrides(PROTOCOL) == (*shared, "batch=32", "method=lora", "rank=8", "alpha=8", "lr=4e-4")
    repo = overrides(Protocol(recipe(), preset="repo"))
    expected = (*shared, "batch=256", "method=lora", "rank=8", "alpha=16", "lr=4e-4", "optim.weight_decay=0.1")
    assert repo == expected
    smoke = overrides(Protocol(recipe(), scale="smoke", given=("batch=2",)), "mnli")
    assert smoke[3:] == ("batch=2", "method=lora", "rank=8", "alpha=8", "lr=5e-4", "epochs=null", "steps=2")


def test_a_scale_has_fewer_seeds_and_rates():
    smoke = Protocol(recipe(), scale="smoke")
    assert smoke.seeds == (1,) and smoke.rates(smoke.recipe.rows[0]) == (1e-4,)
    runs = train_all(smoke)
    assert len(runs) == 4 and all(run.stage == "train" for run in runs.values())
