"""The files of a run, and the same records in W&B's offline transaction log."""

import json
import logging
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lora_jax.errors import UserError
from lora_jax.track import Tracker, is_open, read_json, read_metrics


def run_json(name="rank=8"):
    return {"name": name, "config": {"method": {"name": "lora", "rank": 8}, "lr": 3e-3}, "overrides": [name]}


def wandb_records(folder: Path):
    """The records of W&B's .wandb files in `folder`, once its service has written the last: a run's exit."""
    deadline = time.monotonic() + 120
    while True:
        records = read_wandb_files(folder)
        if time.monotonic() > deadline or any(r.WhichOneof("record_type") == "exit" for r in records):
            return records
        time.sleep(0.1)


def read_wandb_files(folder: Path):
    """A .wandb file is a 7-byte header, then LevelDB's log in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    records = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, parts = path.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # full, or last
                records.append(wandb_internal_pb2.Record.FromString(parts))  # type: ignore[attr-defined]
                parts = b""
    return records


def key_of(item):
    return item.key or "/".join(item.nested_key)


@pytest.fixture
def pack(tmp_path, monkeypatch, capfd):
    """Two runs, alive at once in one process: one finishes, one diverges. Gives their folders and what was printed."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    adapter = tmp_path / "first" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter.safetensors").write_bytes(b"1234")
    first = Tracker(tmp_path / "first", run_json("rank=8"), group="2026/a sweep", wandb="offline")
    second = Tracker(tmp_path / "second", run_json("rank=4"), group="2026/a sweep", wandb="offline")
    for step in range(1, 201):
        for tracker in (first, second):
            tracker.log({"step": step, "tokens": 10 * step, "train/loss": np.float32(1 / step)})
    first.finish({"status": "finished", "test": {"accuracy": 0.875}, "error": None}, adapter)
    second.finish({"status": "diverged", "test": None, "error": "loss is NaN"}, None)
    return tmp_path, capfd.readouterr()


def test_wandb_holds_the_same_records(pack):
    folder, printed = pack
    records = wandb_records(folder / "first")
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.display_name, run.job_type, run.project) == (
        "2026/a sweep",
        "rank=8",
        "train",
        "lora_jax",
    )
    config = {key_of(item): json.loads(item.value_json) for item in run.config.update}
    assert config["method"] == {"name": "lora", "rank": 8} and config["lr"] == 3e-3
    assert config["run"]["overrides"] == ["rank=8"]

    history = [
        {key_of(item): json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert [row["tokens"] for row in history] == [10 * step for step in range(1, 201)]
    files = read_metrics(folder / "first")
    assert [row["train/loss"] for row in history] == pytest.approx([row["train/loss"] for row in files])
    defined = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert "tokens" in defined and "tokens" in defined.values()

    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= {key_of(item): json.loads(item.value_json) for item in record.summary.update}
    assert summary["test/accuracy"] == 0.875 and summary["status"] == "finished"

    artifacts = [
        r for r in records if "artifact" in str(r.WhichOneof("record_type")) or r.request.HasField("log_artifact")
    ]
    assert any('"adapter"' in str(r) and "2026-a-sweep-rank-8" in str(r) for r in artifacts)
    assert printed.out == "" and printed.err == ""


def test_wandb_exit_code_says_how_the_run_ended(pack):
    folder, _ = pack
    codes = {
        name: [r.exit.exit_code for r in wandb_records(folder / name) if r.WhichOneof("record_type") == "exit"]
        for name in ("first", "second")
    }
    assert codes == {"first": [0], "second": [1]}


def test_resumed_run_keeps_its_wandb_id(tmp_path):
    for keep_until in (None, 0):
        Tracker(tmp_path, run_json(), group="g", wandb="offline", keep_until=keep_until).close()
    ids = [r.run.run_id for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "run"]
    Tracker(tmp_path / "other", run_json("rank=4"), group="g", wandb="offline").close()
    other = [r.run.run_id for r in wandb_records(tmp_path / "other") if r.WhichOneof("record_type") == "run"]
    assert len(set(ids)) == 1 and set(ids) != set(other)


def test_resume_drops_later_records_and_a_torn_line(tmp_path):
    with Tracker(tmp_path, run_json(), group="g", wandb="disabled") as tracker:
        for step in (10, 20, 30):
            tracker.log({"step": step, "tokens": step, "train/loss": math.nan})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "tok')
    assert [r["step"] for r in read_metrics(tmp_path)] == [10, 20, 30]
    other = run_json() | {"command": "resumed"}
    with Tracker(tmp_path, other, group="g", wandb="disabled", keep_until=20) as tracker:
        tracker.log({"step": 30, "tokens": 31})
    assert [(r["step"], r["tokens"]) for r in read_metrics(tmp_path)] == [(10, 10), (20, 20), (30, 31)]
    assert math.isnan(read_metrics(tmp_path)[0]["train/loss"])
    assert read_json(tmp_path / "run.json") == run_json()


def test_start_without_resume_leaves_nothing_of_an_earlier_run(tmp_path):
    first = Tracker(tmp_path, run_json(), group="g", wandb="disabled")
    first.log({"step": 1, "tokens": 1})
    first.finish({"status": "finished"})
    Tracker(tmp_path, run_json("rank=9"), group="g", wandb="disabled").close()
    assert read_metrics(tmp_path) == [] and not (tmp_path / "summary.json").exists()
    assert read_json(tmp_path / "run.json")["name"] == "rank=9"


def test_every_line_is_on_disk_when_the_process_is_killed(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from lora_jax.track import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), {'name': 'a', 'config': {}}, group='g', wandb='disabled')\n"
        "for step in range(5): t.log({'step': step, 'tokens': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(5))
    assert not is_open(tmp_path)


def test_exception_leaves_no_summary(tmp_path):
    with pytest.raises(ZeroDivisionError), Tracker(tmp_path, run_json(), group="g", wandb="offline"):
        assert is_open(tmp_path)
        raise ZeroDivisionError
    assert not (tmp_path / "summary.json").exists() and not is_open(tmp_path)
    assert [r.exit.exit_code for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "exit"] == [1]


def test_two_writers_are_refused(tmp_path):
    with Tracker(tmp_path, run_json(), group="g", wandb="disabled"):
        with pytest.raises(UserError, match="another process is writing"):
            Tracker(tmp_path, run_json(), group="g", wandb="disabled", keep_until=0)
        assert is_open(tmp_path)


@pytest.mark.parametrize(("asked", "environment"), [("disabled", {}), ("auto", {"WANDB_MODE": "disabled"})])
def test_disabled_does_not_import_wandb(tmp_path, asked, environment):
    script = (
        "import sys; from pathlib import Path; from lora_jax.track import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), {'name': 'a', 'config': {}}, group='g', wandb=sys.argv[2])\n"
        "t.log({'step': 1, 'tokens': 1}); t.finish({'status': 'finished'})\n"
        "assert not {'wandb', 'jax'} & set(sys.modules)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path), asked], check=True, env=clean | environment)
    assert not (tmp_path / "wandb").exists()


def test_auto_without_login_is_offline(tmp_path):
    script = (
        "import sys; from pathlib import Path; from lora_jax.track import Tracker\n"
        "Tracker(Path(sys.argv[1]), {'name': 'a', 'config': {}}, group='g').finish({'status': 'finished'})"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        env=clean | {"HOME": str(tmp_path)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert list(tmp_path.glob("wandb/offline-run-*")) and done.stdout == done.stderr == b""


def test_broken_wandb_is_one_warning_and_the_files_are_whole(tmp_path, caplog):
    trackers = [Tracker(tmp_path / name, run_json(name), group="g", wandb="offline") for name in ("a", "b")]
    with caplog.at_level(logging.WARNING):
        for tracker in trackers:
            tracker.log({"step": 1, "tokens": 1})
            tracker.finish({"status": "finished"}, tmp_path / "no such adapter")
    assert len([r for r in caplog.records if "W&B failed" in r.message]) == 1
    for name in ("a", "b"):
        assert read_json(tmp_path / name / "summary.json") == {"status": "finished"}
        assert len(read_metrics(tmp_path / name)) == 1


def test_bad_values_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"'on'.*auto, online, offline, disabled"):
        Tracker(tmp_path, run_json(), group="g", wandb="on")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="WANDB_MODE='sometimes'"):
        Tracker(tmp_path, run_json(), group="g")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is not JSON"):
        read_json(tmp_path / "run.json")
