"""Images made for tests, as arrays and as files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Returns an image file's content."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_classes(folder: Path, classes: dict[str, int], seed: int = 0) -> None:
    """Writes so many images to the folder of each class, ``<class>/0.png`` and so on, all of them different."""
    for k, (label, count) in enumerate(classes.items()):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            # One colour, bright for the first class and dark for the next, so that a model can tell them apart.
            pixels = np.full((12, 16, 3), 200 - 100 * k, np.uint8)
            pixels[0, 0] = i % 256, k, seed
            (folder / label / f"{i}.png").write_bytes(encoded(pixels))
