"""The files of a run, and the same records in W&B's offline transaction log."""

import json
import logging
import math
import os
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from helpers.made_up import run_record, summary

from lora_jax.config import WandbConfig
from lora_jax.errors import UserError
from lora_jax.records import MetricsRecord, is_open, read_metrics, read_run, read_summary
from lora_jax.tracking import Tracker, TrackingSession


@dataclass(frozen=True)
class Settings:
    wandb: WandbConfig


OFFLINE, DISABLED = Settings(WandbConfig(mode="offline")), Settings(WandbConfig(mode="disabled"))
# What a process of its own needs to write a run: open_tracker(folder, mode) and record(step).
SCRIPT = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from lora_jax.config import WandbConfig
from lora_jax.records import Axes, MetricsRecord, RunRecord, Summary
from lora_jax.tracking import TrackingSession
lora = {"method": "lora", "method_title": "LoRA", "trains_base": False}
def open_tracker(folder, mode):
    settings = SimpleNamespace(wandb=WandbConfig(mode=mode))
    run = RunRecord(name="a", axes=Axes(**lora))
    return TrackingSession().tracker(Path(folder), run, group="g", settings=settings)
def record(step):
    return MetricsRecord(step=step, tokens=step)
finished = Summary(**lora, name="a", status="finished")
"""


def open_tracker(folder, name="rank=8", *, group="g", settings=OFFLINE, session=None, keep_until=None):
    session = session or TrackingSession()
    return session.tracker(folder, run_record(name), group=group, settings=settings, keep_until=keep_until)


def record(step, tokens, **figures):
    return MetricsRecord(step=step, tokens=tokens, **figures)


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
    session = TrackingSession()
    first = open_tracker(tmp_path / "first", "rank=8", group="2026/a sweep", session=session)
    second = open_tracker(tmp_path / "second", "rank=4", group="2026/a sweep", session=session)
    for step in range(1, 201):
        for tracker in (first, second):
            tracker.log(record(step, 10 * step, **{"train/loss": np.float32(1 / step)}))
    first.finish(summary(test={"accuracy": 0.875}), adapter)
    second.finish(summary("diverged", error="loss is NaN"))
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
    assert [row["train/loss"] for row in history] == pytest.approx([row.figure("train/loss") for row in files])
    defined = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert "tokens" in defined and "tokens" in defined.values()

    figures = {}
    for entry in records:
        if entry.WhichOneof("record_type") == "summary":
            figures |= {key_of(item): json.loads(item.value_json) for item in entry.summary.update}
    assert figures["test/accuracy"] == 0.875 and figures["status"] == "finished"

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
        open_tracker(tmp_path, keep_until=keep_until).close()
    ids = [r.run.run_id for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "run"]
    open_tracker(tmp_path / "other", "rank=4").close()
    other = [r.run.run_id for r in wandb_records(tmp_path / "other") if r.WhichOneof("record_type") == "run"]
    assert len(set(ids)) == 1 and set(ids) != set(other)


def test_resume_drops_later_records_and_a_torn_line(tmp_path):
    with open_tracker(tmp_path, settings=DISABLED) as tracker:
        for step in (10, 20, 30):
            tracker.log(record(step, step, **{"train/loss": math.nan}))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "tok')
    assert [r.step for r in read_metrics(tmp_path)] == [10, 20, 30]
    with Tracker(tmp_path, run_record(command="resumed"), group="g", keep_until=20) as tracker:
        tracker.log(record(30, 31))
    assert [(r.step, r.tokens) for r in read_metrics(tmp_path)] == [(10, 10), (20, 20), (30, 31)]
    assert math.isnan(read_metrics(tmp_path)[0].figure("train/loss"))
    assert read_run(tmp_path) == run_record()


def test_start_without_resume_leaves_nothing_of_an_earlier_run(tmp_path):
    first = open_tracker(tmp_path, settings=DISABLED)
    first.log(record(1, 1))
    first.finish(summary())
    (tmp_path / "metrics.jsonl").write_text("not JSON\n\n")
    open_tracker(tmp_path, "rank=9", settings=DISABLED).close()
    assert read_metrics(tmp_path) == [] and not (tmp_path / "summary.json").exists()
    assert read_run(tmp_path).name == "rank=9"


def test_every_line_is_on_disk_when_the_process_is_killed(tmp_path):
    script = (
        "t = open_tracker(sys.argv[1], 'disabled')\n"
        "for step in range(5): t.log(record(step))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", SCRIPT + script, str(tmp_path)])
    assert [r.step for r in read_metrics(tmp_path)] == list(range(5))
    assert not is_open(tmp_path)


def test_exception_leaves_no_summary(tmp_path):
    with pytest.raises(ZeroDivisionError), open_tracker(tmp_path):
        assert is_open(tmp_path)
        raise ZeroDivisionError
    assert not (tmp_path / "summary.json").exists() and not is_open(tmp_path)
    assert [r.exit.exit_code for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "exit"] == [1]


def test_two_writers_are_refused(tmp_path):
    with open_tracker(tmp_path, settings=DISABLED):
        with pytest.raises(UserError, match="another process is writing"):
            open_tracker(tmp_path, settings=DISABLED, keep_until=0)
        assert is_open(tmp_path)


@pytest.mark.parametrize(("asked", "environment"), [("disabled", {}), ("auto", {"WANDB_MODE": "disabled"})])
def test_disabled_does_not_import_wandb(tmp_path, asked, environment):
    script = SCRIPT + (
        "t = open_tracker(*sys.argv[1:]); t.log(record(1)); t.finish(finished)\n"
        "assert not {'wandb', 'jax'} & set(sys.modules)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path), asked], check=True, env=clean | environment)
    assert not (tmp_path / "wandb").exists()


def test_auto_without_login_is_offline(tmp_path):
    script = SCRIPT + "open_tracker(sys.argv[1], 'auto').finish(finished)"
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
    session = TrackingSession()
    trackers = [open_tracker(tmp_path / name, name, session=session) for name in ("a", "b")]
    with caplog.at_level(logging.WARNING):
        for tracker in trackers:
            tracker.log(record(1, 1))
            tracker.finish(summary(), tmp_path / "no such adapter")
    assert len([r for r in caplog.records if "W&B failed" in r.message]) == 1
    for name in ("a", "b"):
        assert read_summary(tmp_path / name).replace(metrics_sha256=None) == summary()
        assert len(read_metrics(tmp_path / name)) == 1


def test_an_unknown_mode_in_the_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"WANDB_MODE='sometimes'.*auto, online, offline, disabled"):
        open_tracker(tmp_path, settings=Settings(WandbConfig(mode="auto")))
    assert not list(tmp_path.iterdir())


class BrokenSink:
    title = "A sink"

    def __init__(self, broken):
        self.broken, self.calls = broken, []

    def __getattr__(self, method):
        def call(*arguments, **options):
            self.calls.append(method)
            if method == self.broken:
                raise OSError("no connection")

        return call


@pytest.mark.parametrize("broken", ["start", "log", "finish", "close"])
def test_a_sink_that_fails_is_dropped_and_the_others_go_on(tmp_path, broken):
    bad, good, warnings = BrokenSink(broken), BrokenSink(None), []
    with Tracker(tmp_path, run_record(), group="g", sinks=[bad, good], warn=warnings.append) as tracker:
        tracker.log(record(1, 1))
        tracker.log(record(2, 2))
        tracker.finish(summary())
    assert warnings == ["A sink failed (OSError: no connection); going on without it"]
    assert good.calls == ["start", "log", "log", "finish", "close"]
    assert bad.calls == [*good.calls[: good.calls.index(broken) + 1], "close"]
    assert read_summary(tmp_path).replace(metrics_sha256=None) == summary() and len(read_metrics(tmp_path)) == 2


class HangingSink(BrokenSink):
    """A sink that never returns from one of its methods."""

    def __getattr__(self, method):
        def call(*arguments, **options):
            self.calls.append(method)
            if method == self.broken:
                threading.Event().wait()

        return call


@pytest.mark.parametrize("hanging", ["start", "log", "finish", "close"])
def test_a_sink_that_hangs_is_dropped_for_all_runs(tmp_path, monkeypatch, caplog, hanging):
    sinks = []

    class Session:
        def sink(self, settings):
            sinks.append(HangingSink(hanging))
            return sinks[-1]

    monkeypatch.setattr("lora_jax.tracking.session.SINKS", {"hanging": Session})
    session = TrackingSession(seconds=0.2)
    for name in ("a", "b"):
        with open_tracker(tmp_path / name, name, session=session) as tracker:
            tracker.log(record(1, 1))
            tracker.finish(summary(name=name))
        assert read_summary(tmp_path / name).status == "finished" and len(read_metrics(tmp_path / name)) == 1
    calls = ["start", "log", "finish", "close"]
    assert [sink.calls for sink in sinks] == [calls[: calls.index(hanging) + 1], []]
    assert [r.message for r in caplog.records] == [
        "A sink failed (TimeoutError: no answer in 0.2 s); going on without it"
    ]


def test_wandb_that_does_not_start_is_not_tried_again(tmp_path, monkeypatch, caplog):
    calls = []

    def fail(**options):
        calls.append(options["id"])
        raise OSError("no space left")

    monkeypatch.setattr("wandb.init", fail)
    session = TrackingSession()
    for name in ("a", "b"):
        open_tracker(tmp_path / name, name, session=session).finish(summary(name=name))
    assert len(calls) == 1 and [r.message for r in caplog.records] == [
        "W&B failed (OSError: no space left); going on without it"
    ]
    open_tracker(tmp_path / "c", "c", session=TrackingSession()).finish(summary(name="c"))
    assert len(calls) == 2  # another sweep tries anew


def test_an_unreachable_server_is_waited_for_once(tmp_path, monkeypatch, caplog):
    modes = []

    def start(mode, **options):
        modes.append(mode)
        if mode == "online":
            raise TimeoutError("no answer")
        return MagicMock()

    monkeypatch.setattr("wandb.init", start)
    monkeypatch.setattr("wandb.teardown", lambda: modes.append("teardown"))
    session = TrackingSession()
    for name in ("a", "b"):
        online = Settings(WandbConfig(mode="online"))
        open_tracker(tmp_path / name, name, settings=online, session=session).close()
    assert modes == ["online", "teardown", "offline", "offline"]
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1


def test_names_keep_to_wandbs_limits(tmp_path, monkeypatch):
    given = []

    def start(**options):
        given.append(options)
        return MagicMock()

    monkeypatch.setattr("wandb.init", start)
    for folder, name in (("a", "x" * 10_000), ("b", "x" * 9_999 + "y"), ("c", "a\x1b[31m\n\u202eb<script>")):
        open_tracker(tmp_path / folder, name, group="g" * 300).close()
    names, groups = [[options[key] for options in given] for key in ("name", "group")]
    assert all(0 < len(name) <= 128 and name.isprintable() for name in [*names, *groups])
    assert len(set(names)) == 3 and len(set(groups)) == 1
