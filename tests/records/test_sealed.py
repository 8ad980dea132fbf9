"""Every bit of a record is covered: a flipped one is noticed, or changes nothing that is read."""

import json
import math

import numpy as np
import pytest
from helpers.made_up import run_record, summary

from lora_jax.errors import UserError
from lora_jax.records import (
    MetricsFile,
    MetricsRecord,
    PlannedPack,
    read_metrics,
    read_plan,
    read_run,
    read_summary,
    write_json,
    write_plan,
    write_run,
    write_summary,
)
from lora_jax.records.sealed import seal, unseal

PACK = PlannedPack(index=0, runs=("rank=4", "rank=8"), bytes=100, exact=True, steps=6, tokens=1000, flops=1.5e9)


def write_all(folder) -> dict:
    """Writes one file of each kind; returns the reader of each."""
    write_run(folder, run_record(start_time="2026-01-02T03:04:05"))
    write_summary(folder, summary("diverged", train_loss=math.nan, test={"accuracy": 0.875}))
    write_plan(folder, [PACK])
    file = MetricsFile(folder)
    for step in (1, 2, 3):
        file.append(MetricsRecord(step=step, tokens=10 * step, **{"train/loss": np.float32(1 / step)}))
    file.close()
    return {"run.json": read_run, "summary.json": read_summary, "plan.json": read_plan, "metrics.jsonl": read_metrics}


@pytest.mark.parametrize("name", ["run.json", "summary.json", "plan.json", "metrics.jsonl"])
def test_no_flipped_bit_is_read(tmp_path, name):
    read = write_all(tmp_path)[name]
    path, before = tmp_path / name, repr(read(tmp_path))
    content, refused = path.read_bytes(), 0
    for position in range(len(content)):
        for bit in (0, 2, 5):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            try:
                # Only the last line of metrics.jsonl may be lost, because a kill may tear it.
                torn = name == "metrics.jsonl" and position > content[:-1].rfind(b"\n")
                assert repr(read(tmp_path)) == before or torn
            except UserError as error:
                assert name in str(error)
                refused += 1
    assert refused > 2 * len(content)


@pytest.mark.parametrize("name", ["run.json", "summary.json", "plan.json"])
def test_a_truncated_file_is_refused(tmp_path, name):
    read = write_all(tmp_path)[name]
    content = (tmp_path / name).read_bytes()
    for length in range(0, len(content) - 2, 7):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(UserError, match=name):
            read(tmp_path)


def test_a_line_without_its_checksum_is_refused(tmp_path):
    write_all(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "tokens": 40}', ""]))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 4 is damaged.*remove the line"):
        read_metrics(tmp_path)


def test_metrics_of_a_run_that_is_over_are_whole(tmp_path):
    write_all(tmp_path)
    write_summary(tmp_path, summary())
    results, path = read_summary(tmp_path), tmp_path / "metrics.jsonl"
    assert len(read_metrics(tmp_path, results)) == 3
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"".join(lines[:2]), b"".join(lines)[:-5], b""):
        path.write_bytes(damaged)
        assert len(read_metrics(tmp_path)) < 3
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: it does not fit the hash in summary\.json"):
            read_metrics(tmp_path, results)
    path.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path, results)


def test_a_hash_does_not_depend_on_how_the_content_is_written(tmp_path):
    values = {"b": 1e-7, "a": {"é": [1, 2.5, None, math.inf]}, "n": np.int64(3)}
    sealed = seal(values)
    again = json.loads(json.dumps(dict(reversed(sealed.items())), indent=7))
    assert unseal(again, where="it") == {"b": 1e-7, "a": {"é": [1, 2.5, None, math.inf]}, "n": 3}
    with pytest.raises(UserError, match="it is damaged"):
        unseal(sealed | {"b": 1.0000001e-7}, where="it")
    with pytest.raises(UserError, match="it has no sha256"):
        unseal(values, where="it is damaged: it")


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    write_json(tmp_path / "plan.json", {"packs": []})
    before = (tmp_path / "plan.json").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "plan.json", {"packs": [1]})
    assert (tmp_path / "plan.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["plan.json"]
