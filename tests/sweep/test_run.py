"""What a sweep refuses before it loads anything."""

import shutil
from pathlib import Path

import pytest

from lora_jax.commands.composition import compose_run
from lora_jax.config.point import Point
from lora_jax.errors import UserError
from lora_jax.sweep.run import run_points

VERSION_1 = Path(__file__).parents[1] / "records/version_1"


def test_an_unfinished_run_of_an_earlier_version_is_refused_by_name(tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(VERSION_1, folder)
    (folder / "rank=2/summary.json").unlink()
    before = sorted(folder.rglob("*"))
    point = Point("rank=2", folder / "rank=2", compose_run("rank=2", f"resume='{folder}'"))
    with pytest.raises(UserError, match=r"rank=2 is not finished.*records of version 1.*commit 0140d3d"):
        run_points([point], home=folder, group="old")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("task", ["stsb", "stsb_embedding", "nli_triplets"])
def test_label_smoothing_is_refused_for_a_task_without_classes(tmp_path, task):
    settings = (f"task={task}", "model.source=/nowhere", "task.data_dir=/nowhere")
    points = [
        Point(name, tmp_path / name, compose_run(*settings, f"label_smoothing={name}")) for name in ("0.0", "0.1")
    ]
    with pytest.raises(UserError, match=f"^label_smoothing=0.1: must be 0 for task={task}, which has no classes$"):
        run_points(points, home=tmp_path, group="smoothed")
