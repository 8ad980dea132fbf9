"""What lies on disk is checked before it is used: nothing is silently another run, and nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line.test_resume import LATE, assert_same_bits, files
from helpers.command_line import ROOT, SWEPT, CommandLine, read, runs
from safetensors.numpy import load_file, save_file

BANKING77 = ROOT / "lora_jax/data/tasks/banking77"


def assert_refused(process, *fragments: str) -> None:
    """Asserts one line of error, exit status 2, and nothing compiled or trained."""
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    for fragment in fragments:
        assert fragment in process.stderr, process.stderr
    assert "compiling" not in process.stdout and "Traceback" not in process.stdout


def killed(command: CommandLine, sweep: Path, *overrides: str) -> None:
    done = command.killed(LATE, "sweep", *SWEPT, f"hydra.sweep.dir={sweep}", *overrides)
    assert done.returncode == -signal.SIGKILL, done.stderr


def results_of(sweep: Path) -> dict[Path, tuple[int, int]]:
    """Returns the state of every file that results stand in."""
    return {path: state for path, state in files(sweep).items() if ".hydra" not in path.parts}


@pytest.mark.slow
def test_a_sweep_does_not_go_on_with_other_data(command: CommandLine, tmp_path):
    data, sweep = tmp_path / "data", tmp_path / "sweep"
    data.mkdir()
    for name in ("train.csv", "test.csv", "categories.json"):
        shutil.copy(BANKING77 / name, data)
    killed(command, sweep, f"task.data_dir={data}")
    original = (data / "train.csv").read_text()
    swapped = original.replace(",card_arrival\n", ",x\n").replace(",card_linking\n", ",card_arrival\n")
    (data / "train.csv").write_text(swapped.replace(",x\n", ",card_linking\n"))
    before = results_of(sweep / "rank=4")
    assert_refused(
        command("sweep", f"resume={sweep}"), "the data of task=banking77 has changed since", "Restore it and resume"
    )
    assert results_of(sweep / "rank=4") == before
    (data / "train.csv").write_text(original)
    assert command("sweep", f"resume={sweep}").returncode == 0


@pytest.mark.slow
def test_a_sweep_does_not_go_on_with_other_settings(command: CommandLine, tmp_path):
    """The flag --config-dir belongs to the command, so resuming needs it no more."""
    method, sweep = tmp_path / "conf/method/mine.yaml", tmp_path / "sweep"
    method.parent.mkdir(parents=True)
    original = (ROOT / "conf/method/lora.yaml").read_text()
    method.write_text(original)
    killed(command, sweep, "method=mine", f"--config-dir={tmp_path / 'conf'}")
    method.write_text(original.replace("lr: 3e-3", "lr: 3e-2"))
    assert method.read_text() != original
    assert_refused(command("sweep", f"resume={sweep}"), "lr was 0.003 and is 0.03", "Restore the settings and resume")
    method.write_text(original)
    assert command("sweep", f"resume={sweep}").returncode == 0


@pytest.mark.slow
def test_a_sweep_does_not_go_on_with_another_base(command: CommandLine, swept, tmp_path):
    model, sweep = tmp_path / "model", tmp_path / "sweep"
    shutil.copytree(command.model, model)
    killed(command, sweep, f"model.source={model}")
    original = (model / "model.safetensors").read_bytes()
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 3] += 1e-3
    save_file(tensors, model / "model.safetensors")
    assert_refused(command("sweep", f"resume={sweep}"), f"the base {model} has changed since", "Restore it and resume")
    (model / "model.safetensors").write_bytes(original)
    assert command("sweep", f"resume={sweep}").returncode == 0


@pytest.mark.slow
def test_points_whose_names_were_alike_are_both_trained(command: CommandLine, tmp_path):
    one, other, sweep = tmp_path / "m/a", tmp_path / "m_a", tmp_path / "sweep"
    one.parent.mkdir()
    for folder in (one, other):
        shutil.copytree(command.model, folder)
    done = command.sweep(sweep, f"model.source={one},{other}", "rank=2", "steps=2", "baseline=none")
    assert done.returncode == 0, done.stderr
    sources = {read(sweep / name / "run.json")["base"]["source"] for name in runs(sweep)}
    assert sources == {str(one), str(other)}


def test_two_points_of_one_folder_are_refused(command: CommandLine, tmp_path):
    for launcher in ("packed", "basic"):
        done = command.sweep(tmp_path / "sweep", "rank=2,4", "hydra.sweep.subdir=same", f"hydra/launcher={launcher}")
        assert_refused(done, "hydra.sweep.subdir", "one folder (same)", "hydra.job.num")
    long = "+".join(["q@0:1"] * 80)
    done = command.sweep(tmp_path / "sweep", "rank=2", f"targets={long},qv")
    assert_refused(done, "must be at most 255", "hydra.sweep.subdir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_used(command: CommandLine, swept, tmp_path):
    sweep = tmp_path / "sweep"
    killed(command, sweep)
    # Orbax may not have finished the checkpoint of step 4.
    newest = max(
        (path for path in (sweep / "checkpoints/pack-0").iterdir() if path.name.isdigit()), key=lambda p: p.name
    )
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert f"{newest} is damaged and is not used" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert_same_bits(swept[0], sweep)


def without_space(call: int, error: str) -> str:
    """Returns code after which the nth `os.fsync`, which every record is written with, and all later ones fail."""
    return f"""
import os
fsync, calls = os.fsync, 0
def full(descriptor):
    global calls
    calls += 1
    if calls >= {call}:
        raise {error}
    return fsync(descriptor)
os.fsync = full
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", ['OSError(28, "No space left on device", "a file")', 'RuntimeError("RESOURCE_EXHAUSTED: os error 28")']
)
def test_a_full_disk_is_said_once_and_loses_nothing(command: CommandLine, swept, tmp_path, error):
    sweep = tmp_path / "sweep"
    done = command.after(without_space(6, error), "sweep", *SWEPT, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(f"then continue with resume={sweep}\n"), done.stderr
    assert "the disk is full" in done.stderr and "halving" not in done.stdout and "Traceback" not in done.stdout
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert_same_bits(swept[0], sweep)


@pytest.mark.slow
def test_one_of_two_resumes_goes_on(command: CommandLine, swept, tmp_path):
    sweep = tmp_path / "sweep"
    killed(command, sweep)
    first = command.popen(f"resume={sweep}")
    while not (sweep / ".lock").exists() and first.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    assert_refused(command("sweep", f"resume={sweep}"), f"{sweep} is in use by process {first.pid} on")
    assert first.wait() == 0
    assert_same_bits(swept[0], sweep)
    assert not (sweep / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_ends_within_its_grace_period(command: CommandLine, tmp_path, name, status):
    """What hangs after the signal, here orbax, is abandoned."""
    hang = (
        "import time; from lora_jax.train.checkpoint import PackCheckpoints as P; P.close = lambda _: time.sleep(600)"
    )
    sweep = tmp_path / "sweep"
    process = command.popen(*SWEPT, f"hydra.sweep.dir={sweep}", "steps=100000", before=hang, stderr=subprocess.PIPE)
    while not (sweep / "rank=4/metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert error == f"interrupted; continue with resume={sweep}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["it's, a b 100% ~", 'say "ü" = {x} [1] back\\slash $HOME'])
def test_any_name_of_a_folder_works(command: CommandLine, swept, tmp_path, name):
    sweep = tmp_path / name
    killed(command, sweep)
    done = command("sweep", f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert_same_bits(swept[0], sweep)


def test_a_folder_with_an_interpolation_is_refused(command: CommandLine, tmp_path):
    done = command.sweep(tmp_path / "${now:x}", "rank=2")
    assert_refused(done, "hydra.sweep.dir=", "must be a plain path")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(command: CommandLine, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(command.sweep(tmp_path / "file/sweep", "rank=2"), str(tmp_path / "file"), "Not a directory")
    assert_refused(command.sweep(tmp_path / "file", "rank=2"), f"hydra.sweep.dir={tmp_path / 'file'}: must be a folder")
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan.json", "command.json", "method=full/run.json", "rank=4/metrics.jsonl"])
def test_a_damaged_record_of_an_unfinished_sweep_is_named(command: CommandLine, tmp_path, name):
    sweep = tmp_path / "sweep"
    killed(command, sweep)
    if name == "method=full/run.json":
        (sweep / "method=full").mkdir(exist_ok=True)
        shutil.copy(sweep / "rank=4/run.json", sweep / name)
    text = (sweep / name).read_text()
    (sweep / name).write_text(text.replace("1", "2", 1))
    assert json.loads(text.splitlines()[0] if name.endswith("jsonl") else text)
    assert_refused(command("sweep", f"resume={sweep}"), str(sweep / name), "is damaged")
