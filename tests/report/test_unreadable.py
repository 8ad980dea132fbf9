"""Reports of sweeps with damaged runs, of runs that lie in the wrong place, and of bases or data that changed."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import ROOT
from helpers.made_up import figures, table, write_run
from rich.console import Console

from lora_jax.records import read_run, write_json
from lora_jax.records import write_run as write_record
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.report.compare import configurations, finding
from lora_jax.report.tables import over_seeds


def texts(sweep):
    """Returns the page, table.md and what the terminal shows."""
    page = build_report(sweep).read_text()
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal_table(load_rows(sweep)))
    return [" ".join(text.split()) for text in (page, (sweep / "report/table.md").read_text(), console.export_text())]


def flip(path: Path) -> None:
    content = path.read_text()
    path.write_text(content.replace('"lr": 0.003', '"lr": 0.004').replace("0.83", "0.93"))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ALL = ["summary.json", "run.json", "metrics.jsonl"]
DAMAGES = {
    "a changed figure": (flip, ["summary.json", "run.json"], "is damaged: its content does not fit its sha256"),
    "half a file": (lambda path: path.write_text('{"name"'), ["summary.json", "run.json"], "is not JSON"),
    "bytes": (
        lambda path: path.write_bytes(b"\xff\x00\n"),
        ALL,
        "is not JSON",
    ),
    "a list": (lambda path: path.write_text("[]\n"), ALL, "JSON object"),
    "wrong types": (
        lambda path: path.write_text('{"name": 7, "step": [], "status": 3}\n'),
        ALL,
        ": must be",
    ),
    "a folder": (replace_by_folder, ALL, "cannot be read: Is a directory"),
    "nothing": (lambda path: path.unlink(), ["run.json"], "is missing"),
}
CASES = [(damage, name) for damage, (_, names, _) in DAMAGES.items() for name in names]


@pytest.fixture
def sweep(tmp_path):
    for rank in (4, 8, 16):
        write_run(tmp_path / "sweep", {"rank": rank})
    write_run(tmp_path / "sweep", {"method": "full"})
    return tmp_path / "sweep"


@pytest.mark.parametrize("damage, name", CASES)
def test_a_run_with_a_damaged_file_is_unreadable_and_the_others_are_reported(sweep, damage, name):
    act, _, why = DAMAGES[damage]
    act(sweep / "rank=8" / name)
    rows = {row.name: row for row in load_rows(sweep)}
    assert {name: row.status for name, row in rows.items()} == {
        **dict.fromkeys(["rank=4", "rank=16", "method=full"], "finished"),
        "rank=8": "unreadable",
    }
    assert rows["rank=8"].error.startswith(name) and why in rows["rank=8"].error
    for text in texts(sweep):
        assert f"rank=8 unreadable: {name}" in text and why.partition('"')[0] in text
        assert "0.840" in text and "0.830" not in text
    assert "Best: rank 16" in finding(list(rows.values())) or "Best on validation: rank 16" in finding(
        list(rows.values())
    )
    assert finding(list(rows.values())).endswith("1 of 4 runs cannot be read.")
    assert table(sweep / "report/table.csv")["rank=8"]["status"] == "unreadable"


def test_a_file_without_permission_is_unreadable(sweep, monkeypatch):
    read = Path.read_bytes

    def refuse(path):
        if path.parent.name == "rank=8" and path.name == "summary.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert next(row.error for row in load_rows(sweep) if row.name == "rank=8") == (
        "summary.json cannot be read: Permission denied"
    )


def test_a_sweep_of_unreadable_runs_has_a_report_that_says_so(sweep):
    for folder in sweep.iterdir():
        (folder / "run.json").write_text("{")
    page, markdown, terminal = texts(sweep)
    assert "No run can be read." in page and "nothing to draw" in page
    for text in (page, markdown, terminal):
        assert all(f"{name} unreadable: run.json is not JSON" in text for name in ("rank=4", "rank=8", "method=full"))


def test_the_command_reports_the_others_and_fails(sweep):
    (sweep / "rank=8/summary.json").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", str(sweep)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "rank=8 unreadable: summary.json is not JSON" in done.stdout and "0.840" in done.stdout


@pytest.mark.parametrize("name", ["rank=4", "method=full"])
def test_a_summary_of_another_run_is_not_reported(sweep, name):
    shutil.copy(sweep / name / "summary.json", sweep / "rank=8/summary.json")
    row = next(row for row in load_rows(sweep) if not row.readable)
    assert row.name == "rank=8" and "rank=8" in row.error and name in row.error
    assert "summary.json is of another run than run.json: its name is" in row.error


def test_a_summary_of_other_settings_is_not_reported(sweep):
    shutil.rmtree(sweep / "rank=8")
    write_run(sweep, {"rank": 8, "lr": 1e-2}, name="rank=8")
    other = sweep.parent / "other"
    write_run(other, {"rank": 8, "lr": 1e-3}, name="rank=8")
    shutil.copy(other / "rank=8/summary.json", sweep / "rank=8")
    row = next(row for row in load_rows(sweep) if not row.readable)
    assert row.error == "summary.json is of another run than run.json: its lr is 0.001, the other's is 0.01"


def test_runs_of_the_same_name_keep_their_folders_apart(tmp_path):
    for part, score in (("a", 0.8), ("b", 0.9)):
        write_run(tmp_path / part, {"rank": 4}, **figures(score))
        write_run(tmp_path / part, {"rank": 4, "seed": 1}, **figures(score))
    write_run(tmp_path / "b", {"rank": 8}, **figures(0.7))
    rows = load_rows(tmp_path)
    assert {row.name for row in rows} == {"a/rank=4", "a/rank=4,seed=1", "b/rank=4", "b/rank=4,seed=1", "rank=8"}
    assert [len(configuration.rows) for configuration in configurations(rows)] == [2, 2, 1]
    assert "rank 4 (targets all) folder=b reaches 0.900 test accuracy (mean of 2 seeds)" in finding(rows)
    build_report(tmp_path)
    assert table(tmp_path / "report/table.csv")["b/rank=4"]["folder"] == "b"


def test_a_copy_of_a_run_beside_it_is_no_second_seed(sweep):
    shutil.copytree(sweep / "rank=4", sweep / "copy")
    assert {row.name for row in load_rows(sweep)} == {"copy", "rank=4", "rank=8", "rank=16", "method=full"}
    assert over_seeds(load_rows(sweep)) is None


SETTINGS = {"model": {"source": "/a/model", "family": "bert"}, "task": {"name": "banking77", "data_dir": "/data"}}


def change_run(folder, **changes):
    write_record(folder, read_run(folder).replace(**changes))


@pytest.mark.parametrize("kind", ["base", "data"])
def test_runs_whose_base_or_data_changed_between_them_are_not_ranked(sweep, kind):
    for folder in sweep.iterdir():
        change_run(folder, config=SETTINGS)
    assert "Best" in finding(load_rows(sweep))
    change_run(sweep / "rank=16", **{kind: {"fingerprint": "0123456789abcdef"}})
    sentence = (
        f"These runs cannot be ranked, because their {kind} changed between them: rank=4, rank=8, method=full had"
    )
    assert finding(load_rows(sweep)).startswith(sentence)
    for text in texts(sweep):
        assert sentence in text and "rank=16 had 0123456789ab." in text and "Best" not in text
    assert [path.name for path in (sweep / "report").glob("*.png")] == ["training-loss.png"]


def test_seeds_of_different_bases_are_not_averaged(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path, {"rank": 4, "seed": seed})
        change_run(folder, config=SETTINGS, base={"fingerprint": f"{seed}" * 12})
    assert over_seeds(load_rows(tmp_path)) is None and "0.8" not in finding(load_rows(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bfloat16"},
        {"base_storage": "nf4"},
        {"model": {**SETTINGS["model"], "pool": "first"}},
        {"model": {**SETTINGS["model"], "source": "/b/model"}},
        {"task": {**SETTINGS["task"], "data_dir": "/other"}},
    ],
)
def test_runs_of_other_settings_may_have_other_fingerprints(sweep, settings):
    for folder in sweep.iterdir():
        change_run(folder, config=SETTINGS)
    data = {"data": {"fingerprint": "0" * 12}} if "task" in settings else {}
    change_run(sweep / "rank=16", config={**SETTINGS, **settings}, base={"fingerprint": "1" * 12}, **data)
    assert "Best" in finding(load_rows(sweep))


def test_a_single_run_may_be_unreadable(sweep):
    (sweep / "rank=4/summary.json").write_text("7")
    (row,) = load_rows(sweep / "rank=4")
    assert (row.name, row.status) == ("rank=4", "unreadable")
    assert json.loads((sweep / "rank=8/summary.json").read_text())
    write_json(sweep / "rank=4/summary.json", {"name": "rank=4"})
    assert "version" in load_rows(sweep / "rank=4")[0].error or "missing" in load_rows(sweep / "rank=4")[0].error
