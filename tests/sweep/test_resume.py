"""A resumed run is the run that was asked for: other settings, another base and other data are refused."""

import dataclasses

import pytest
from helpers.made_up import run_record, summary

from lora_jax.config.point import Point
from lora_jax.errors import UserError
from lora_jax.records import Base, Data, inputs_key, read_json, write_json, write_run, write_summary
from lora_jax.sweep.resume import check_inputs, check_runs, recorded_inputs


@pytest.fixture
def point(configure, tmp_path) -> Point:
    """A point of a resumed sweep, whose run has begun."""
    config = configure(rank=8, resume=str(tmp_path))
    folder = tmp_path / "rank=8"
    folder.mkdir()
    fingerprints = {"base": Base(source="m", fingerprint="b" * 64), "data": Data(name="t", fingerprint="d" * 64)}
    write_run(folder, run_record(config=config.model_dump(mode="json"), **fingerprints))
    return Point("rank=8", folder, config)


def changed(point: Point, **changes) -> Point:
    return dataclasses.replace(point, config=point.config.model_copy(update=changes))


def test_the_same_settings_go_on(point):
    check_runs([point])
    check_runs(
        [changed(point, pack=1, resume="elsewhere", wandb=point.config.wandb.model_copy(update={"mode": "online"}))]
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lr": 0.03}, "lr was 0.003 and is 0.03"),
        ({"rank": 16}, "rank was 8 and is 16"),
        ({"checkpoint_every": 7}, "checkpoint_every was 'auto' and is 7"),
    ],
)
@pytest.mark.parametrize("status", [None, "failed", "finished"])
def test_other_settings_are_refused(point, changes, text, status):
    if status:
        write_summary(point.folder, summary(status))
    with pytest.raises(UserError) as refused:
        check_runs([changed(point, **changes)])
    assert text in str(refused.value) and str(point.folder) in str(refused.value)
    assert "hydra.sweep.dir=<new folder>" in str(refused.value)


def test_settings_of_a_method_and_lists_are_compared(point):
    method = point.config.method.model_copy(update={"dropout": 0.1})
    task = point.config.task.model_copy(update={"buckets": (16, 48)})
    with pytest.raises(
        UserError, match=r"method\.dropout was 0\.0 and is 0\.1; task\.buckets was \[.*\] and is \[16, 48\]"
    ):
        check_runs([changed(point, method=method, task=task)])


def without(point: Point, group: str | None, name: str) -> None:
    """Removes a setting from what is recorded, as if an earlier commit, which did not have it, had begun the run."""
    run = read_json(point.folder / "run.json")
    del (run["config"][group] if group else run["config"])[name]
    write_json(point.folder / "run.json", run)


@pytest.mark.parametrize(
    ("group", "name"), [(None, "stop"), (None, "label_smoothing"), ("method", "dora"), ("method", "lr_ratio")]
)
def test_a_setting_that_was_not_recorded_had_its_default(point, group, name):
    without(point, group, name)
    check_runs([point])


@pytest.mark.parametrize("status", [None, "finished"])
def test_a_new_setting_with_another_value_is_refused(point, status):
    without(point, "method", "lr_ratio")
    if status:
        write_summary(point.folder, summary(status))
    with pytest.raises(UserError, match=r"method\.lr_ratio was 1\.0 and is 4\.0"):
        check_runs([changed(point, method=point.config.method.model_copy(update={"lr_ratio": 4.0}))])


def test_a_setting_that_is_gone_stops_an_unfinished_run_only(point):
    run = read_json(point.folder / "run.json")
    run["config"]["tempo"] = 3
    write_json(point.folder / "run.json", run)
    with pytest.raises(UserError, match="tempo was 3 and is None"):
        check_runs([point])
    write_summary(point.folder, summary())
    check_runs([point])


@pytest.mark.parametrize(("version", "commit"), [(1, "0140d3d"), (2, "0f4e48a")])
def test_an_unfinished_run_of_an_earlier_version_is_refused(point, version, commit):
    write_json(point.folder / "run.json", read_json(point.folder / "run.json") | {"version": version})
    with pytest.raises(UserError, match=f"records of version {version}, this is 3.*{commit}"):
        check_runs([point])


def test_a_damaged_record_is_refused(point):
    (point.folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 10, "crc32": "00000000"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged"):
        check_runs([point])


def test_a_run_is_not_overwritten(point):
    with pytest.raises(UserError, match="already has a run; continue it with resume="):
        check_runs([changed(point, resume=None)])


class FakeSetup:
    """The fields of a Setup that are compared."""

    def __init__(self, base="b" * 64, data="d" * 64):
        self.base, self.data, self.task = Base(source="m", fingerprint=base), Data(fingerprint=data), Data(name="t")


def test_another_base_and_other_data_are_refused(point, tmp_path):
    runs = recorded_inputs(tmp_path)[inputs_key(point.config.model_dump(mode="json"))]
    check_inputs(FakeSetup(), runs)
    with pytest.raises(UserError, match=r"the base m has changed since .*rank=8 began: .* was bbbbbbbbbbbb"):
        check_inputs(FakeSetup(base="0" * 64), runs)
    with pytest.raises(UserError, match=r"the data of task=t has changed since .*rank=8 began"):
        check_inputs(FakeSetup(data="0" * 64), runs)


def test_runs_on_other_bases_and_tasks_are_not_compared(point, tmp_path):
    others = [{"dtype": "bfloat16"}, {"base_storage": "nf4"}]
    for changes in others:
        assert inputs_key(changed(point, **changes).config.model_dump(mode="json")) not in recorded_inputs(tmp_path)
