"""The files of a run: read and written whole, upgraded from version 1, refused where they cannot be read."""

import json
import math

import pytest
from helpers.made_up import run_record, summary

from lora_jax.errors import UserError
from lora_jax.records import (
    MetricsRecord,
    PackRecord,
    find_runs,
    is_open,
    read_json,
    read_metrics,
    read_run,
    read_summary,
    write_json,
    write_run,
    write_summary,
)


def test_records_are_read_as_they_were_written(tmp_path):
    run = run_record(start_time="2026-01-02T03:04:05", overrides=("rank=8", "lr=1e-3"))
    results = summary(test={"accuracy": 0.5}, valid_best={"step": 300, "loss": 1.5}, pack=PackRecord(index=1, runs=4))
    write_run(tmp_path, run)
    write_summary(tmp_path, results)
    assert read_run(tmp_path) == run and read_summary(tmp_path) == results
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["version"] == 3 and content["started"] == "2026-01-02T03:04:05" and "start_time" not in content
    assert isinstance(read_summary(tmp_path).valid_best["step"], int)


def test_figures_may_be_nan_and_infinite(tmp_path):
    write_summary(tmp_path, summary("diverged", train_loss=math.nan, test={"perplexity": math.inf}))
    assert "NaN" in (tmp_path / "summary.json").read_text()
    results = read_summary(tmp_path)
    assert math.isnan(results.train_loss) and results.test["perplexity"] == math.inf
    assert results.replace(metric="perplexity").score("test") is None


def test_a_run_without_a_summary_is_not_over(tmp_path):
    assert read_summary(tmp_path) is None and read_metrics(tmp_path) == [] and not is_open(tmp_path)


def test_unknown_keys_are_ignored(tmp_path):
    for name, record in (("run.json", run_record()), ("summary.json", summary())):
        write_json(tmp_path / name, record.to_json() | {"mood": "good"})
    assert read_run(tmp_path) == run_record() and read_summary(tmp_path) == summary()


@pytest.mark.parametrize(("name", "read"), [("run.json", read_run), ("summary.json", read_summary)])
@pytest.mark.parametrize("version", [4, "two"])
def test_a_file_of_a_newer_version_is_refused(tmp_path, name, read, version):
    (tmp_path / name).write_text(json.dumps({"version": version}))
    with pytest.raises(UserError, match=rf"{name}: version is {version!r}; .* up to version 3"):
        read(tmp_path)


def test_a_value_of_a_wrong_type_is_refused_by_its_key(tmp_path):
    write_json(tmp_path / "summary.json", summary().to_json() | {"rank": "many", "status": "lost"})
    with pytest.raises(UserError, match=r"summary\.json: .*rank='many': must be a valid integer.*status='lost'"):
        read_summary(tmp_path)


def test_files_that_are_not_json_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 1}\nnonsense\n{"step": 2, "tokens": 2}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="line 1: tokens is missing"):
        read_metrics(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is not JSON"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UserError, match=r"run\.json: must be a JSON object, not list"):
        read_run(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere/run\.json is missing"):
        read_run(tmp_path / "elsewhere")


def test_metrics_are_an_open_set_of_numbers(tmp_path):
    record = MetricsRecord(step=1, tokens=2, **{"train/loss": 0.5, "note": "text"})
    assert record.figure("train/loss") == 0.5 and record.figure("note") is None and record.figure("other") is None


def test_run_folders_are_found_at_any_depth_but_not_inside_of_runs(tmp_path):
    for name in ("a/b", "c", "c/inside", "checkpoints/d"):
        (tmp_path / name).mkdir(parents=True)
        write_run(tmp_path / name, run_record(name))
    assert find_runs(tmp_path) == [tmp_path / "a/b", tmp_path / "c"]
