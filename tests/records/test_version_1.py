"""A sweep that was written before records had a version still reads, reports, replays and gives its adapters.

tests/records/version_1 is ``experiments.sweep rank=2,4 steps=6 eval_every=2`` on the tiny BERT of tests/conftest.py, by
commit 0140d3d (2026-11-24). The adapter of full fine-tuning, 4 MB, is left out.
"""

import json
import shutil
from pathlib import Path

import pytest

from lora_jax.analysis.stopping import replay
from lora_jax.errors import UserError
from lora_jax.records import RECORD_VERSION, read_run, read_summary
from lora_jax.report import build_report, load_rows
from lora_jax.weights.adapters import load_adapter

VERSION_1 = Path(__file__).parent / "version_1"


@pytest.fixture
def sweep(tmp_path):
    return shutil.copytree(VERSION_1, tmp_path / "sweep")


def test_version_1_is_upgraded():
    run, summary = read_run(VERSION_1 / "rank=2"), read_summary(VERSION_1 / "rank=2")
    assert run.version == summary.version == RECORD_VERSION
    assert run.config["base_storage"] == "auto" and "base" not in run.config
    assert run.data.examples == {"train": 8998, "valid": 1005, "test": 3080}
    assert run.start_time.startswith("2026-11-24T")
    assert (summary.method, summary.method_title, summary.trains_base) == ("lora", "LoRA", False)
    full = read_summary(VERSION_1 / "method=full")
    assert (full.method, full.method_title, full.trains_base) == ("full", "full fine-tuning", True)
    for name in ("rank=2", "method=full"):
        axes, results = read_run(VERSION_1 / name).axes, read_summary(VERSION_1 / name)
        assert axes == type(axes)(**{field: getattr(results, field) for field in type(axes).model_fields})


def test_version_1_reports(sweep):
    rows = load_rows(sweep)
    assert [(row.name, row.status) for row in rows] == [
        *(("rank=2", "finished"), ("rank=4", "finished"), ("method=full", "finished"))
    ]
    page = build_report(sweep).read_text()
    assert "full fine-tuning reaches" in page and "2a5242317419" in page and "8,998 train" in page
    assert {"quality-by-rank.png", "training-loss.png"} < {path.name for path in (sweep / "report").iterdir()}
    assert replay(sweep) == []  # packs of two and of one


def test_an_interrupted_run_of_version_1_keeps_its_axes(sweep):
    for name in ("rank=4", "method=full"):
        (sweep / name / "summary.json").unlink()
    rows = {row.name: row for row in load_rows(sweep)}
    lora, full = rows["rank=4"], rows["method=full"]
    assert (lora.status, lora.rank, lora.alpha, lora.targets, lora.lr) == ("interrupted", 4, 16.0, "all", 3e-3)
    assert (full.rank, full.trains_base, full.lr, full.model, full.steps) == (None, True, 3e-4, "minilm", 6)


def test_a_partial_file_of_version_1_is_read(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text("{}")
    (tmp_path / "old/summary.json").write_text(json.dumps({"status": "failed", "targets": ["q", "v"]}))
    (row,) = load_rows(tmp_path)
    assert (row.name, row.method, row.targets, row.rank) == ("old", "?", "q,v", None)


@pytest.mark.parametrize("rank", [2, 4])
def test_adapters_of_format_1_load(rank):
    folder = VERSION_1 / f"rank={rank}"
    adapter = load_adapter(folder / "adapter", base_fingerprint=read_run(folder).base.fingerprint)
    factor = adapter.params["backbone/layers/attn/q/adapter"]
    assert factor.a.shape[-1] == factor.b.shape[-2] == rank


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config": 7}, "config=7: must be a JSON object"),
        ({"data": "x"}, "data='x': must be a JSON object"),
        ({"overrides": True}, "overrides=True: must be a JSON array"),
        ({"base": {"parameters": 10**400}}, "base.parameters=1000"),
    ],
)
def test_wrong_types_of_version_1_are_refused(sweep, changes, message):
    path = sweep / "rank=2/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        read_run(path.parent)


@pytest.mark.parametrize("changes", [{"command": [1, "x"]}, {"config": {"lr": 10**400, "seed": float("inf")}}])
def test_odd_values_of_version_1_do_not_matter(sweep, changes):
    path = sweep / "rank=2/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overrides": []} | changes))
    assert read_run(path.parent).name == "rank=2"
