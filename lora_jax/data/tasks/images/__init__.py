"""A folder of images of the user's, with a folder for each class."""

from pathlib import Path

from lora_jax.data.image_builder import read_images
from lora_jax.data.images import Images
from lora_jax.data.prepared import open_builder
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.images.layout import list_images
from lora_jax.errors import UserError


def load(data_dir: Path | None = None) -> TaskData[Images]:
    """Reads the images in `data_dir`; tasks/images/README.md says how they lie there.

    Raises UserError if there is no folder, its layout is another, or a file is no image.
    """
    if data_dir is None:
        raise UserError("task=images: needs task.data_dir, a folder such as photos/ with photos/train/<class>/*.jpg")

    from lora_jax.data.tasks.images.builder import ImageFolder

    files = [path.relative_to(data_dir).as_posix() for split in list_images(data_dir).values() for path in split]
    return read_images(open_builder(ImageFolder, data_dir, files))


IMAGES = Task(
    name="images",
    objective="image_classification",
    evaluators=("scores",),
    metrics=("accuracy", "loss"),
    metric="accuracy",
    select="accuracy",
    load=load,
)
