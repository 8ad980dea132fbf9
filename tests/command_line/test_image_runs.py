"""Image classification through the real command line, on a tiny random ViT and images made for this test."""

import json

import pytest
from helpers.checkpoints import save_checkpoint
from helpers.command_line import read, records, runs
from helpers.image_files import write_classes

from lora_jax.models.vit import VitConfig
from lora_jax.weights.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory):
    """A source for ``model.source``: a random ViT of 2 layers, 4 heads and width 32, for images of 16 x 16."""
    folder = tmp_path_factory.mktemp("tiny-vit")
    half = (0.5,) * 3
    preprocessing = Preprocessing((16, 16), 2, 1 / 255, half, half).as_json()
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return save_checkpoint(folder, "vit", VitConfig(32, 2, 4, 64, 16, 8, 3, 1e-12, "gelu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_classes(folder, {"bright": 40, "dark": 40})
    return folder


@pytest.mark.slow
@pytest.mark.smoke
def test_a_sweep_on_a_folder_of_images(command, tiny_vit, photos, tmp_path):
    image_task = ("model=vit_b16", f"model.source={tiny_vit}", "task=images", f"task.data_dir={photos}")
    done = command.sweep(tmp_path / "sweep", *image_task, "task.buckets=null", "rank=2,4", "steps=12", "lr=1e-2")
    assert done.returncode == 0, done.stderr
    assert len(runs(tmp_path / "sweep")) == 3
    for name in runs(tmp_path / "sweep"):
        summary = read(tmp_path / "sweep" / name / "summary.json")
        assert (summary["status"], summary["test"]["accuracy"]) == ("finished", 1.0)
        assert max(record["tokens"] for record in records(tmp_path / "sweep" / name)) == 12 * 8  # images
    assert len(json.loads((tmp_path / "sweep" / "plan.json").read_text())["packs"]) == 2  # of LoRA, of full fine-tuning


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["model=vit_b16", "task=banking77"],
            "model.family=vit: it reads images, and task=banking77 has texts; use a model of the family bert or",
        ),
        (
            ["model=minilm", "task=mnist"],
            "model.family=bert: it reads texts, and task=mnist has images; use a model of the family vit,",
        ),
        (["+task.augment=[flip]"], "task.augment=['flip']: must be null or empty, for task=banking77 has texts"),
    ],
)
def test_a_task_that_the_model_does_not_read_is_refused_before_either_is_loaded(
    command, tmp_path, overrides, complaint
):
    done = command.sweep(tmp_path / "sweep", *overrides, "task.data_dir=/nowhere", "model.source=/nowhere")
    assert done.returncode != 0 and complaint in done.stderr
