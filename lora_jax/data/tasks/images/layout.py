"""Finds the images of a folder, in splits and classes."""

import os
from collections.abc import Iterator
from pathlib import Path

from lora_jax.data.image_files import SUFFIXES
from lora_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each split that `folder` has, in order. The name of a file's folder is its class.

    There are folders ``train/<class>/``, perhaps also ``validation/<class>/`` and ``test/<class>/``, or folders
    ``<class>/`` alone, which are ``train`` then. Names that begin with a point are passed over.

    Raises:
      UserError: the layout is another one, there are fewer than two classes, a class of ``train`` has no image, another
        split has a class that ``train`` does not have, or a file does not have one of SUFFIXES.
    """
    where = f"task.data_dir={str(folder.absolute())!r}"
    if not os.path.isdir(folder):
        raise UserError(f"{where}: there is no such folder; expected one with train/<class>/*.jpg or <class>/*.jpg")
    names = [path.name for path in _entries(folder) if path.is_dir()]
    splits = {"train": folder}
    if "train" in names:
        if others := set(names) - set(SPLITS):
            raise UserError(f"{where}: there is {min(others)}/ beside train/; expected only {', '.join(SPLITS)}")
        splits = {name: folder / name for name in SPLITS if name in names}
    files = {name: _classes(path) for name, path in splits.items()}
    if len(files["train"]) < 2:
        raise UserError(f"{where}: {len(files['train'])} classes; expected a folder of images for each of two or more")
    for name, classes in files.items():
        for label, images in classes.items():
            if label not in files["train"]:
                expected = ", ".join(files["train"])
                raise UserError(f"{splits[name] / label}: no class of the training images; expected one of {expected}")
            if not images and name == "train":
                raise UserError(f"{splits[name] / label}: the class has no image; expected one or more")
    return {name: [path for images in classes.values() for path in images] for name, classes in files.items()}


def _classes(folder: Path) -> dict[str, list[Path]]:
    classes = {}
    for path in _entries(folder):
        if not path.is_dir():
            raise UserError(f"{path.absolute()}: a file beside the folders of the classes; expected none")
        if not path.name.isprintable():
            raise UserError(f"{str(path.absolute())!r}: the name of a class must have printable letters only")
        classes[path.name] = list(map(_image, _entries(path)))
    return classes


def _image(path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path.absolute()}: expected only files that end with {', '.join(SUFFIXES)}")
    return path


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder.absolute()} cannot be read: {error.strerror}; expected a readable folder") from error
