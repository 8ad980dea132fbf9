"""Images: the examples of a split, and their encoding for a base. They are resized when a batch is made.

At 224 x 224 pixels an image takes 600 kB as float32, and CIFAR-10's take 3 kB as they are published. So a split stays
as it was read, and the host resizes and normalises one batch at a time, as the checkpoint's preprocessing says.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64, UInt8
from PIL import Image

from lora_jax.data.batches import drawn_bits
from lora_jax.data.tokens import Batch

# Black pixels on each side before a crop, as a part of the height: the 4 of 32 in He et al. (arXiv 1512.03385, 4.2).
MARGIN = 1 / 8

Pixels = UInt8[np.ndarray, "examples height width channels"]


@dataclass(frozen=True, eq=False)
class Images:
    """One split of images of one size. ``labels[i]`` is the class of ``pixels[i]``. Grey images have one channel."""

    pixels: Pixels
    labels: Int32[np.ndarray, " examples"]

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[-1] not in (1, 3):
            raise ValueError(f"pixels of {self.pixels.dtype} {self.pixels.shape}: expected uint8 [n, h, w, 1 or 3]")
        if self.labels.dtype != np.int32 or self.labels.shape != (len(self.pixels),):
            raise ValueError(f"{len(self.pixels)} images, but labels of {self.labels.dtype} {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Sequence[int]) -> "Images":
        """Returns the images at `rows`, in that order."""
        if isinstance(rows, range):  # a view, without a copy of the pixels
            return Images(
                self.pixels[rows.start : rows.stop : rows.step], self.labels[rows.start : rows.stop : rows.step]
            )
        return Images(self.pixels[np.asarray(rows, int)], self.labels[np.asarray(rows, int)])

    def join(self, other: "Images") -> "Images":
        """Returns these images, and then those of `other`, which have the same size."""
        return Images(np.concatenate([self.pixels, other.pixels]), np.concatenate([self.labels, other.labels]))

    def scored(self, limit: int | None) -> "Images":
        """Returns the first `limit` images."""
        return self.take(range(len(self))[:limit])

    def content(self) -> list[Any]:
        """Returns the shape of the pixels, their SHA-256 and the labels. Fingerprints hash it."""
        pixels = np.ascontiguousarray(self.pixels)
        return [list(pixels.shape), hashlib.sha256(pixels.data).hexdigest(), self.labels.tolist()]


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """A split of images as a base reads them. It is an `EncodedSplit` (batches.py), in which an image has length 1.

    Attributes:
      images: the examples.
      preprocess: resizes and normalises images (``weights.preprocessing.Preprocessing``).
      augment: how images to train on are varied: ``crop`` moves an image by up to MARGIN, ``flip`` mirrors every other
        one left to right.
    """

    images: Images
    preprocess: Callable[[Sequence[Image.Image]], Float32[np.ndarray, "batch height width 3"]]
    augment: tuple[str, ...] = ()

    max_length = 1
    no_label = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """The classes."""
        return self.images.labels

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """1 for each image."""
        return np.ones(len(self), np.int64)

    def padded(self, examples: Int[np.ndarray, "*batch"], length: int, pad_id: int) -> Batch:
        """Returns these images, not augmented. Their pixels are `tokens`, float32 ``[*batch, height, width, 3]``."""
        pixels = self._preprocessed(self.images.pixels[examples.reshape(-1)])
        return self._batch(pixels.reshape(*examples.shape, *pixels.shape[1:]), examples, length)

    def drawn(
        self, examples: Int[np.ndarray, "runs batch"], length: int, pad_id: int, *, seeds: Sequence[int], step: int
    ) -> Batch:
        """Returns these images, augmented. That depends on the run's seed, the step and the place in the batch."""
        made: dict[tuple[int, bytes], Float32[np.ndarray, "batch height width 3"]] = {}
        keys = [(seed, rows.tobytes()) for seed, rows in zip(seeds, examples, strict=True)]
        for key, seed, rows in zip(keys, seeds, examples, strict=True):
            if key not in made:  # runs of one seed see the same images
                made[key] = self._preprocessed(self._augmented(rows, seed, step))
        return self._batch(np.stack([made[key] for key in keys]), examples, length)

    def _batch(
        self, pixels: Float32[np.ndarray, "*batch height width 3"], examples: Int[np.ndarray, "*batch"], length: int
    ) -> Batch:
        mask: Bool[np.ndarray, "*batch length"] = np.broadcast_to(np.arange(length) < 1, (*examples.shape, length))
        return Batch(tokens=pixels, mask=mask.copy(), labels=self.labels[examples])

    def _preprocessed(self, pixels: Pixels) -> Float32[np.ndarray, "examples height width 3"]:
        # Pillow reads a grey image from two axes.
        grey = pixels.shape[-1] == 1
        return self.preprocess([Image.fromarray(image[..., 0] if grey else image) for image in pixels])

    def _augmented(self, rows: Int[np.ndarray, " batch"], seed: int, step: int) -> Pixels:
        pixels = self.images.pixels[rows]
        down, right, side = drawn_bits((len(rows), 3), 2, step, seed).T
        if "crop" in self.augment:
            pixels = _cropped(pixels, down, right)
        if "flip" in self.augment:
            pixels = np.where((side >> np.uint64(63)).astype(bool)[:, None, None, None], pixels[:, :, ::-1], pixels)
        return pixels


def _cropped(pixels: Pixels, down: Int[np.ndarray, " examples"], right: Int[np.ndarray, " examples"]) -> Pixels:
    """Surrounds images with black, and cuts their size out again at a random place, which 64 random bits choose."""
    _, height, width, _ = pixels.shape
    margins = [round(MARGIN * height), round(MARGIN * width)]
    wide = np.pad(pixels, [(0, 0), *((margin, margin) for margin in margins), (0, 0)])
    tops, lefts = ((bits % np.uint64(2 * n + 1)).astype(int) for bits, n in zip((down, right), margins, strict=True))
    return np.stack(
        [image[top : top + height, left : left + width] for image, top, left in zip(wide, tops, lefts, strict=True)]
    )
