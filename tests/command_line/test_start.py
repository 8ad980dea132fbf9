"""A run that starts from an adapter of another task, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from helpers.command_line import CommandLine, read
from safetensors.numpy import load_file

PAIRS = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(
    f"{i % 2}\t{i}\t{100 + i}\tThe {i} dogs sleep.\tDogs, {i} of them, {'sleep' if i % 2 else 'run'}.\n"
    for i in range(60)
)


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mrpc")
    (folder / "msr_paraphrase_train.txt").write_text(PAIRS)
    (folder / "dev_ids.tsv").write_text("".join(f"{i}\t{100 + i}\n" for i in range(50, 60)))
    return folder


@pytest.fixture(scope="module")
def trained(command: CommandLine, tmp_path_factory):
    """The folder of a run on banking77, of 77 labels."""
    sweep = tmp_path_factory.mktemp("start") / "banking77"
    done = command.sweep(sweep, "rank=2", "baseline=none", "lr=1e-2")
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in sweep.glob("*/summary.json"))
    return run


def test_a_run_goes_on_from_an_adapter_of_another_task(command: CommandLine, mrpc, trained, tmp_path):
    settings = ["task=mrpc", f"task.data_dir={mrpc}", "rank=2", f'base="{trained}"', "lr=1e-30", "steps=1"]
    done = command.sweep(tmp_path / "sweep", *settings, "baseline=none", "optim.warmup=0")
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    before, after = (load_file(folder / "adapter/delta.safetensors") for folder in (trained, run))
    kept = [name for name in before if "/head/" not in name]
    assert kept and any(np.abs(before[name]).max() > 0 for name in kept if name.endswith("/b"))
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert after["params/head/bias/value"].shape == (2,) and before["params/head/bias/value"].shape == (77,)
    sha256 = json.loads((trained / "adapter/adapter.json").read_text())["tensors_sha256"]
    assert read(run / "run.json")["base"]["adapter"] == sha256


def test_what_cannot_be_gone_on_from_is_refused_before_training(command: CommandLine, mrpc, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained / "adapter", other)
    cases = {
        (f'base="{trained}"', "rank=4"): ["LowRank", "[2, 32, 2]", "[2, 32, 4]", "same method, targets and ranks"],
        (f'base="{trained}"', "rank=2", "targets=q"): ["missing in this run"],
        (f"base={tmp_path / 'nowhere'}", "rank=2"): ["has no adapter: delta.safetensors is missing"],
        ("base=nf4", "rank=2"): ["base='nf4'", "base_storage=nf4"],
        (f"base={other}", "rank=2", "dtype=bfloat16"): [f"base={other}", "must be the same base"],
    }
    for settings, texts in cases.items():
        done = command.sweep(tmp_path / "sweep", "task=mrpc", f"task.data_dir={mrpc}", "baseline=none", *settings)
        assert done.returncode == 2, done.stdout
        assert all(text in done.stderr for text in texts), done.stderr
    assert not list((tmp_path / "sweep").glob("*/summary.json"))


@pytest.mark.slow
def test_full_fine_tuning_beside_it_starts_from_the_base(command: CommandLine, mrpc, trained, tmp_path):
    settings = ["task=mrpc", f"task.data_dir={mrpc}", "rank=2", f'base="{trained}"', "steps=2"]
    done = command.sweep(tmp_path / "sweep", *settings)
    assert done.returncode == 0, done.stderr
    started = {
        read(path)["axes"]["method"]: read(path)["base"]["adapter"] is not None
        for path in (tmp_path / "sweep").glob("*/run.json")
    }
    assert started == {"lora": True, "full": False}
