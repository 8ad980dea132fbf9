"""``python -m experiments.sweep``: the files that it writes and the lines that it prints."""

import csv
import math
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import SWEPT, CommandLine, read, records, runs
from safetensors.numpy import load_file
from tracking.test_track import key_of, wandb_records

RUN = {
    "name",
    "config",
    "overrides",
    "versions",
    "device",
    "base",
    "data",
    "commit",
    "command",
    "started",
    "version",
    "axes",
}
SUMMARY = {
    *("name", "status", "error", "method", "rank", "alpha", "targets", "lr", "seed", "model", "task", "steps"),
    *("trainable", "adapter_parameters", "head_parameters", "base_parameters", "trainable_share", "metric", "test"),
    *("valid_best", "train_loss", "tokens", "seconds", "tokens_per_s", "compile_seconds", "peak_memory_bytes"),
    *("adapter_bytes", "pack", "select", "version", "method_title", "trains_base", "metrics_sha256"),
}
TRAIN = {f"train/{name}" for name in ("loss", "lr", "grad_norm", "update_norm", "param_norm", "tokens_per_s")}


@pytest.mark.smoke
def test_layout_of_a_sweeps_folder(swept):
    sweep, printed = swept
    assert {path.name for path in sweep.iterdir()} - {"checkpoints"} == {
        *("rank=4", "rank=8", "method=full", "multirun.yaml", "command.json", "plan.json", "report")
    }
    assert not list(sweep.glob("checkpoints/*"))
    for name in ("rank=4", "rank=8", "method=full"):
        assert {path.name for path in (sweep / name).iterdir()} == {
            *(".hydra", "run.json", "metrics.jsonl", "summary.json", "outcomes.npz", "adapter")
        }
        assert {path.name for path in (sweep / name / "adapter").iterdir()} == {"adapter.json", "delta.safetensors"}
    assert {"index.html", "table.md", "table.csv"} < {path.name for path in (sweep / "report").iterdir()}
    packs = read(sweep / "plan.json")["packs"]
    assert [(pack["index"], pack["runs"]) for pack in packs] == [(0, ["rank=4", "rank=8"]), (1, ["method=full"])]
    # Two layers, a pooler and a head of 77 labels; lookups in embeddings take no FLOPs.
    kernels = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32 + 32 * 77
    assert packs[1]["flops"] == 6 * kernels * packs[1]["tokens"]
    assert printed.count(" min of training: ") == 2


def test_run_json_and_summary_json(swept):
    sweep, _ = swept
    for name in ("rank=4", "rank=8", "method=full"):
        run, summary = read(sweep / name / "run.json"), read(sweep / name / "summary.json")
        assert set(run) == RUN and set(summary) == SUMMARY
        assert run["name"] == summary["name"] == name and name in run["overrides"]
        assert run["command"].startswith("python -m experiments.sweep rank=4,8") or "rank=4,8" in run["command"]
        assert len(run["base"]["fingerprint"]) == len(run["data"]["fingerprint"]) == 64
        assert run["data"]["examples"] == {"train": 8998, "valid": 1005, "test": 3080}
        assert summary["status"] == "finished" and summary["error"] is None and summary["steps"] == 6
        assert summary["trainable"] == summary["adapter_parameters"] + summary["head_parameters"]
        assert summary["adapter_bytes"] == sum(path.stat().st_size for path in (sweep / name / "adapter").iterdir())
    lora, full = read(sweep / "rank=8" / "summary.json"), read(sweep / "method=full" / "summary.json")
    assert [lora[key] for key in ("method", "rank", "alpha", "targets", "lr")] == ["lora", 8, 16, "all", 3e-3]
    assert [full[key] for key in ("method", "rank", "alpha", "targets", "lr")] == ["full", None, None, None, 5e-4]
    assert lora["pack"] == {"index": 0, "runs": 2} and full["pack"] == {"index": 1, "runs": 1}
    # Two layers of q, k, v, o (32 x 32) and of an MLP (32 x 64, 64 x 32), and a head of 77 labels.
    assert lora["adapter_parameters"] == 2 * 8 * (4 * (32 + 32) + 2 * (32 + 64))
    assert lora["head_parameters"] == full["head_parameters"] == 77 * 32 + 77
    assert full["adapter_parameters"] == full["base_parameters"] == lora["base_parameters"]


def test_metrics_of_a_run(swept):
    for name in ("rank=4", "rank=8", "method=full"):
        metrics = records(swept[0] / name)
        training = [record for record in metrics if "train/loss" in record]
        assert [record["step"] for record in training] == [1, 2, 3, 4, 5, 6]
        assert all(set(record) == TRAIN | {"step", "tokens"} for record in training)
        tokens = [record["tokens"] for record in metrics]
        assert tokens == sorted(tokens) and tokens[0] > 0
        assert [record["step"] for record in metrics if "valid/accuracy" in record] == [3, 6]
        assert set(metrics[-1]) == {"step", "tokens", "test/loss", "test/accuracy"}


def test_the_test_scores_the_best_validation(swept):
    for name in ("rank=4", "rank=8", "method=full"):
        summary, metrics = read(swept[0] / name / "summary.json"), records(swept[0] / name)
        scored = {record["step"]: record for record in metrics if "valid/accuracy" in record}
        best = max(scored, key=lambda step: (scored[step]["valid/accuracy"], -step))
        assert summary["valid_best"]["step"] == best
        assert summary["valid_best"]["accuracy"] == scored[best]["valid/accuracy"]
        assert summary["test"] == {key: metrics[-1][f"test/{key}"] for key in ("accuracy", "loss")}


def test_a_sweep_prints_its_table(swept):
    _, printed = swept
    table = printed[printed.index("test accuracy") :]
    lines = [line.split() for line in table.splitlines() if "finished" in line]
    assert [line[:2] for line in lines] == [["lora", "4"], ["lora", "8"], ["full", "–"]]
    assert "Traceback" not in printed and "report: " in printed
    assert Path(printed.strip().splitlines()[-1].removeprefix("report: ")).name == "index.html"


def test_a_study_has_two_packs(command: CommandLine, tmp_path):
    """rank x targets x lr: 8 points of LoRA in one program, 2 full fine-tunings in another."""
    study = ["rank=4,8", "targets=qv,all", "lr=1e-3,3e-3"]
    process = command.popen(*study, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    try:
        while not (tmp_path / "sweep/plan.json").exists() and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    packs = [pack["runs"] for pack in read(tmp_path / "sweep/plan.json")["packs"]]
    planned = [name for pack in packs for name in pack]
    lora = {
        f"lr={lr},rank={rank},targets={targets}"
        for lr in ("0.001", "0.003")
        for rank in (4, 8)
        for targets in ("qv", "all")
    }
    full = {f"lr={lr},method=full" for lr in ("0.000166667", "0.0005")}
    assert len(planned) == 10 and set(planned) == lora | full
    assert [len(pack) for pack in packs] == [8, 2] and set(packs[1]) == full


def assert_same_results(one: Path, other: Path) -> None:
    """Asserts that two sweeps have equal runs, up to the order of summation."""
    assert runs(one) == runs(other)
    for name in runs(one):
        a, b = read(one / name / "summary.json"), read(other / name / "summary.json")
        for key in ("status", "method", "rank", "alpha", "lr", "seed", "steps", "tokens", "trainable"):
            assert a[key] == b[key], key
        assert a["valid_best"]["step"] == b["valid_best"]["step"]
        assert a["test"]["accuracy"] == pytest.approx(b["test"]["accuracy"], abs=2 / 3080)
        assert a["test"]["loss"] == pytest.approx(b["test"]["loss"], abs=1e-4)
        tensors, other_tensors = (load_file(sweep / name / "adapter/delta.safetensors") for sweep in (one, other))
        assert tensors.keys() == other_tensors.keys()
        for path in tensors:
            # Adam's first steps depend on the signs of gradients, so gradients near zero may change their direction.
            np.testing.assert_allclose(tensors[path], other_tensors[path], atol=2e-3, err_msg=f"{name} {path}")
            assert np.abs(tensors[path] - other_tensors[path]).mean() < 1e-5


@pytest.mark.slow
def test_hydras_launcher_gives_the_same_results(command: CommandLine, swept, tmp_path):
    done = command.sweep(tmp_path / "sweep", *SWEPT, "hydra/launcher=basic")
    assert done.returncode == 0, done.stderr
    assert_same_results(swept[0], tmp_path / "sweep")
    rows = [list(csv.DictReader((sweep / "report/table.csv").open())) for sweep in (swept[0], tmp_path / "sweep")]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]]


@pytest.mark.slow
def test_a_sweeper_may_launch_in_batches(command: CommandLine, swept, tmp_path):
    done = command.sweep(tmp_path / "sweep", *SWEPT, "hydra.sweeper.max_batch_size=1")
    assert done.returncode == 0, done.stderr
    assert_same_results(swept[0], tmp_path / "sweep")
    packs = read(tmp_path / "sweep/plan.json")["packs"]
    assert sorted(name for pack in packs for name in pack["runs"]) == ["method=full", "rank=4", "rank=8"]
    assert len({pack["index"] for pack in packs}) == 3


@pytest.mark.slow
def test_swept_settings_may_be_in_a_file(command: CommandLine, tmp_path):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    content = "# @package _global_\nseed: 1\nhydra: {sweeper: {params: {rank: '2,4', method: 'lora,full'}}}\n"
    (tmp_path / "conf/experiment/mine.yaml").write_text(content)
    arguments = [f"--config-dir={tmp_path / 'conf'}", *command.small, "steps=1", "+experiment=mine"]
    done = command("sweep", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    # Full fine-tuning at two ranks is one run.
    assert runs(tmp_path / "sweep") == ["method=full,rank=2", "method=lora,rank=2", "method=lora,rank=4"]
    assert {read(tmp_path / "sweep" / name / "summary.json")["seed"] for name in runs(tmp_path / "sweep")} == {1}


@pytest.mark.slow
def test_a_single_point_needs_no_baseline(command: CommandLine, tmp_path):
    done = command.sweep(tmp_path / "sweep", "baseline=none", "steps=1")
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path / "sweep") == ["method=lora"]


COUNT_COMPILATIONS = """
import atexit, jax
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
atexit.register(lambda: print("hits:", events.count("cache_hits"), "misses:", events.count("cache_misses")))
"""


def test_a_second_start_compiles_nothing(command: CommandLine, swept, tmp_path):
    done = command.after(COUNT_COMPILATIONS, "sweep", *SWEPT, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^hits: [1-9]\d* misses: 0$", done.stdout, re.M)


COMPILE_AHEAD = """
import functools
from lora_jax.sweep import prepare, run
taken = []
class Watched(prepare.Preparation):
    def __init__(self, setups, ahead):
        super().__init__(setups, ahead=True)
    def prepare(self, plan):
        taken.append(plan.index in self._prepared)
        return super().prepare(plan)
run.Preparation = Watched
import atexit
atexit.register(lambda: print("taken:", taken))
"""


def test_the_next_pack_compiles_while_one_trains(command: CommandLine, swept, tmp_path):
    sweep = tmp_path / "sweep"
    done = command.after(COMPILE_AHEAD, "sweep", *SWEPT, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr
    # The first pack in its turn, the second ahead of it, and the second in its turn.
    assert "taken: [False, False, True]" in done.stdout
    for name in ("rank=4", "rank=8", "method=full"):
        assert records(sweep / name)[-1]["test/accuracy"] == records(swept[0] / name)[-1]["test/accuracy"]


def test_one_padded_length_can_be_fixed_by_hand(command: CommandLine, swept, tmp_path):
    sizes = ["task.buckets=[16,24]", "compile.lengths=longest", "baseline=none"]
    done = command.sweep(tmp_path / "sweep", *sizes, "rank=4", "steps=2")
    assert done.returncode == 0, done.stderr
    assert "for 24 tokens" in done.stdout
    (pack,) = read(tmp_path / "sweep/plan.json")["packs"]
    assert (pack["lengths"], pack["gemm"]) == ("longest", "default")


@pytest.mark.slow
def test_runs_of_a_pack_may_have_different_lengths(command: CommandLine, tmp_path):
    overrides = ["steps=3,6", "eval_every=2", "log_every=1", "rank=2", "lr=1e-2"]
    done = command.sweep(tmp_path / "sweep", *overrides, "baseline=none")
    assert done.returncode == 0, done.stderr
    (pack,) = read(tmp_path / "sweep/plan.json")["packs"]
    assert sorted(pack["runs"]) == ["steps=3", "steps=6"]
    for name, steps, scored in (("steps=3", 3, [2, 3]), ("steps=6", 6, [2, 4, 6])):
        metrics, summary = records(tmp_path / "sweep" / name), read(tmp_path / "sweep" / name / "summary.json")
        assert summary["steps"] == steps
        assert [record["step"] for record in metrics if "train/loss" in record] == list(range(1, steps + 1))
        assert [record["step"] for record in metrics if "valid/accuracy" in record] == scored
        assert summary["valid_best"]["step"] in scored
        assert metrics[-1]["step"] == steps and "test/accuracy" in metrics[-1]
        assert summary["tokens"] == metrics[-1]["tokens"] == max(record["tokens"] for record in metrics)
        # The schedule ends with the run: the last update is the smallest, just above zero.
        learning_rates = [record["train/lr"] for record in metrics if "train/lr" in record]
        assert learning_rates[-1] == pytest.approx(0.01 / steps) and learning_rates == sorted(
            learning_rates, reverse=True
        )


@pytest.mark.slow
def test_epochs_determine_the_steps(command: CommandLine, tmp_path):
    sizes = ["batch=1024", "epochs=0.25,0.5", "steps=null", "rank=2", "baseline=none"]
    done = command.sweep(tmp_path / "sweep", *sizes)
    assert done.returncode == 0, done.stderr
    # 8998 texts are 8 whole batches of 1024.
    assert read(tmp_path / "sweep/epochs=0.25/summary.json")["steps"] == 2
    assert read(tmp_path / "sweep/epochs=0.5/summary.json")["steps"] == 4


def test_a_run_that_diverges_does_not_stop_the_others(command: CommandLine, tmp_path):
    done = command.sweep(tmp_path / "sweep", "lr=1e-3,1e6", "rank=4", "log_every=1", "baseline=none", "steps=6")
    assert done.returncode == 1
    diverged, finished = (read(tmp_path / "sweep" / name / "summary.json") for name in ("lr=1000000.0", "lr=0.001"))
    assert (diverged["status"], diverged["test"], diverged["adapter_bytes"]) == ("diverged", None, None)
    assert diverged["steps"] < 6 and str(diverged["steps"] + 1) in diverged["error"]
    assert not (tmp_path / "sweep/lr=1000000.0/adapter").exists()
    assert finished["status"] == "finished" and finished["steps"] == 6 and math.isfinite(finished["test"]["loss"])
    assert [record["step"] for record in records(tmp_path / "sweep/lr=0.001") if "train/loss" in record][-1] == 6
    assert f"lr=1000000.0 diverged: {diverged['error']}" in done.stdout
    assert "diverged" in (tmp_path / "sweep/report/table.md").read_text()


def test_report_needs_only_the_files_of_the_sweep(command: CommandLine, swept, tmp_path):
    sweep = tmp_path / "sweep"
    shutil.copytree(swept[0], sweep)
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    shutil.rmtree(sweep / "report")
    done = command("report", sweep)
    assert done.returncode == 0, done.stderr
    after = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] != before[path] and path.suffix != ".png"] == []
    assert "finished" in done.stdout


def test_report_refuses_other_folders(command: CommandLine, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        done = command("report", folder)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.startswith(f"error: {folder} ") and "Expected a sweep's folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_the_metrics_and_the_summary(command: CommandLine, tmp_path):
    sweep = tmp_path / "a sweep"
    overrides = ["wandb.mode=offline", "rank=4", "baseline=none"]
    done = command("sweep", *command.small, *overrides, f"hydra.sweep.dir='{sweep}'")
    assert done.returncode == 0, done.stderr
    folder = sweep / "rank=4"
    metrics = wandb_records(folder)
    run = next(record.run for record in metrics if record.WhichOneof("record_type") == "run")
    assert (run.run_group, run.display_name, run.project) == ("a sweep", "rank=4", "lora_jax")
    logged = [record.history for record in metrics if record.WhichOneof("record_type") == "history"]
    assert len(logged) == len(records(folder))
    assert {key_of(item) for row in logged for item in row.item} >= TRAIN | {"valid/accuracy", "test/accuracy"}
    figures = {}
    for record in metrics:
        if record.WhichOneof("record_type") == "summary":
            figures |= {key_of(item): item.value_json for item in record.summary.update}
    assert float(figures["test/loss"]) == read(folder / "summary.json")["test"]["loss"]
    assert figures["status"] == '"finished"'
    assert any(record.request.HasField("log_artifact") or record.HasField("artifact") for record in metrics)
    assert [record.exit.exit_code for record in metrics if record.WhichOneof("record_type") == "exit"] == [0]


def test_a_single_run_has_results_and_a_report(command: CommandLine, tmp_path):
    done = command("train", *command.small, "rank=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "run/summary.json")["status"] == "finished"
    assert (tmp_path / "run/report/index.html").exists() and "finished" in done.stdout


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
@pytest.mark.parametrize("module", ["sweep", "train"])
def test_help_creates_no_folder(command: CommandLine, module, flags):
    results = Path(__file__).parents[2] / "results"
    before = sorted(results.rglob("*")) if results.exists() else []
    done = command(module, *flags, "rank=5")
    assert done.returncode == 0, done.stderr
    expected = "python -m experiments.sweep" if flags == ["--help"] else "rank: 5"
    assert expected in done.stdout and "Traceback" not in done.stderr
    assert (sorted(results.rglob("*")) if results.exists() else []) == before
