"""A sweep that is killed and resumed gives the same results, bit for bit, as an uninterrupted one."""

import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers.command_line import SWEPT, CommandLine, read, records, runs
from helpers.slow import sometimes

# Fields that depend on the clock and may differ.
CLOCK = {"train/tokens_per_s", "seconds", "tokens_per_s", "compile_seconds", "metrics_sha256"}

# The process is killed before the nth call of a function: module, name, n.
MOMENTS = {
    "the first step is logged": ("lora_jax.tracking.tracker", "Tracker.log", 1),
    "a checkpoint is being written": ("lora_jax.train.callbacks", "record.train_figures", 5),
    "one run has its adapter and no summary": ("lora_jax.tracking.tracker", "Tracker.finish", 1),
    "one run of the pack has ended": ("lora_jax.sweep.finish", "save_adapter", 2),
    "the next pack starts": ("lora_jax.sweep.run", "initialise", 2),
    "the baseline is training": ("lora_jax.train.callbacks", "record.train_figures", 17),
}
LATE = ("lora_jax.train.callbacks", "record.train_figures", 9)  # after the checkpoints of steps 2 and 4


def without_clock(tree):
    if isinstance(tree, dict):
        return {key: without_clock(value) for key, value in tree.items() if key not in CLOCK}
    return [without_clock(value) for value in tree] if isinstance(tree, list) else tree


def assert_same_bits(one: Path, other: Path) -> None:
    assert runs(one) == runs(other) != []
    for name in runs(one):
        assert without_clock(records(one / name)) == without_clock(records(other / name)), name
        summaries = [without_clock(read(sweep / name / "summary.json")) for sweep in (one, other)]
        assert summaries[0] == summaries[1], name
        tensors = [(sweep / name / "adapter/delta.safetensors").read_bytes() for sweep in (one, other)]
        assert tensors[0] == tensors[1], name
    assert read(one / "plan.json") == read(other / "plan.json")


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Returns the inode and modification time of every file."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment", sometimes(MOMENTS, "one run of the pack has ended"))
def test_a_killed_sweep_resumes(command: CommandLine, swept, tmp_path, moment):
    sweep = tmp_path / "sweep"
    killed = command.killed(MOMENTS[moment], "sweep", *SWEPT, f"hydra.sweep.dir={sweep}")
    assert killed.returncode == -signal.SIGKILL
    ended = [run for run in ("rank=4", "rank=8", "method=full") if (sweep / run / "summary.json").exists()]
    before = {run: files(sweep / run) for run in ended}
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert_same_bits(swept[0], sweep)
    for run in ended:
        after = files(sweep / run)
        assert {
            path for path in before[run] if after[path] != before[run][path] and ".hydra" not in path.parts
        } == set()
    assert not list(sweep.glob("checkpoints/*")) and not list(sweep.rglob(".adapter*"))


@pytest.mark.slow
def test_a_sweep_killed_from_outside_resumes(command: CommandLine, swept, tmp_path):
    """The process gets SIGKILL once a run has metrics, at an arbitrary moment."""
    process = command.popen(*SWEPT, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    while not (tmp_path / "sweep/rank=4/metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = command("sweep", f"resume={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert_same_bits(swept[0], tmp_path / "sweep")
    # A resumed sweep can be resumed again.
    assert command("sweep", f"resume={tmp_path / 'sweep'}").returncode == 0


@pytest.mark.slow
def test_a_sweep_interrupted_from_the_keyboard_resumes(command: CommandLine, swept, tmp_path):
    arguments = [*SWEPT, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    stopped = command.killed(LATE, "sweep", *arguments, signal="SIGINT")
    assert stopped.returncode == 130
    assert stopped.stderr.strip().endswith(f"interrupted; continue with resume={tmp_path / 'sweep'}")
    assert "Traceback" not in stopped.stderr
    done = command("sweep", f"resume={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert_same_bits(swept[0], tmp_path / "sweep")


def test_a_complete_sweep_is_not_changed(command: CommandLine, swept, tmp_path):
    sweep = tmp_path / "sweep"
    shutil.copytree(swept[0], sweep)
    before = files(sweep)
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    after = files(sweep)
    written = {path.relative_to(sweep).as_posix() for path in after if after[path] != before.get(path)}
    assert {path for path in written if not path.startswith("report/") and ".hydra/" not in path} <= {
        *("plan.json", "multirun.yaml")
    }
    assert_same_bits(swept[0], sweep)
    assert "compiling" not in done.stdout and done.stdout.count("finished") == 3


FIRST_PACK_FAILS = """
from lora_jax.sweep import run
initialise, calls = run.initialise, []
def failing(*arguments):
    calls.append(arguments)
    if len(calls) == 1:
        raise ValueError("a bug")
    return initialise(*arguments)
run.initialise = failing
"""


@pytest.mark.slow
def test_a_pack_that_fails_does_not_stop_the_others(command: CommandLine, swept, tmp_path):
    sweep = tmp_path / "sweep"
    done = command.after(FIRST_PACK_FAILS, "sweep", *SWEPT, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 1
    statuses = {name: read(sweep / name / "summary.json")["status"] for name in runs(sweep)}
    assert statuses == {"rank=4": "failed", "rank=8": "failed", "method=full": "finished"}
    assert read(sweep / "rank=4/summary.json")["error"] == "ValueError: a bug"
    assert "rank=4 failed: " in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (sweep / "pack-0-error.txt").read_text()
    before = files(sweep / "method=full/adapter")
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert_same_bits(swept[0], sweep)
    assert files(sweep / "method=full/adapter") == before
    assert not (sweep / "pack-0-error.txt").exists()


@pytest.mark.slow
def test_a_single_run_resumes(command: CommandLine, tmp_path):
    overrides = ["rank=2", "steps=4", "log_every=1", "checkpoint_every=2"]
    complete, run = tmp_path / "complete", tmp_path / "run"
    done = command("train", *command.small, *overrides, f"hydra.run.dir={complete}")
    assert done.returncode == 0, done.stderr
    killed = command.killed(
        ("lora_jax.train.callbacks", "record.train_figures", 4), "train", *overrides, f"hydra.run.dir={run}"
    )
    assert killed.returncode == -signal.SIGKILL
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert without_clock(records(run)) == without_clock(records(complete))
    tensors = [(folder / "adapter/delta.safetensors").read_bytes() for folder in (run, complete)]
    assert tensors[0] == tensors[1]


@pytest.mark.slow
def test_a_sweep_of_hydras_launcher_resumes(command: CommandLine, tmp_path):
    sweep = tmp_path / "sweep"
    overrides = ["rank=2", "log_every=1", "checkpoint_every=2", "hydra/launcher=basic", f"hydra.sweep.dir={sweep}"]
    killed = command.killed(
        ("lora_jax.train.callbacks", "record.train_figures", 8), "sweep", *overrides
    )  # in the baseline
    assert killed.returncode == -signal.SIGKILL
    before = files(sweep / "rank=2/adapter")
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert {read(sweep / name / "summary.json")["status"] for name in ("rank=2", "method=full")} == {"finished"}
    assert files(sweep / "rank=2/adapter") == before
    assert [record["step"] for record in records(sweep / "method=full") if "train/loss" in record] == [1, 2, 3, 4]


@pytest.mark.parametrize("module", ["sweep", "train"])
def test_resume_refuses_other_folders_and_new_overrides(command: CommandLine, swept, tmp_path, module):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "missing"):
        done = command(module, f"resume={folder}")
        assert done.returncode == 2 and done.stderr.startswith(f"error: resume={folder}: ")
    if module == "sweep":
        before = files(swept[0])
        done = command(module, f"resume={swept[0]}", "rank=16")
        assert (
            done.returncode == 2 and done.stderr.startswith(f"error: resume={swept[0]}: ") and "rank=16" in done.stderr
        )
        assert files(swept[0]) == before
    assert sorted(tmp_path.iterdir()) == [empty] and not list(empty.iterdir())
