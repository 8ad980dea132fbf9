"""Preprocesses images: resizes, rescales and normalises them as a model's preprocessor_config.json says."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from lora_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocesses images as ``transformers``' ViTImageProcessor does, without cropping or keeping proportions.

    Attributes:
      size: height and width in pixels. None: images are not resized.
      resample: Pillow's number of a filter (2 is bilinear).
      scale: the factor of pixel values. 1: no rescaling.
      mean: subtracted from each channel. 0: no normalisation.
      std: each channel is divided by it. 1: no normalisation.
    """

    size: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[Image.Image]) -> Float32[np.ndarray, "batch height width 3"]:
        """Returns the images as one batch of RGB pixels, channels last."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        batch = []
        for image in images:
            image = image.convert("RGB")
            if self.size is not None:
                image = image.resize(self.size[::-1], Image.Resampling(self.resample))
            batch.append((np.asarray(image) * np.float32(self.scale) - mean) / std)
        return np.stack(batch)

    def as_json(self) -> dict[str, Any]:
        """Returns the content of preprocessor_config.json."""
        size = None if self.size is None else {"height": self.size[0], "width": self.size[1]}
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": size is not None,
            **({} if size is None else {"size": size, "resample": int(self.resample)}),
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def read_preprocessing(folder: Path) -> Preprocessing:
    """Reads the preprocessing that ``preprocessor_config.json`` in `folder` describes.

    Raises:
      UserError: the file is missing or malformed, or has other steps than resizing to a fixed size, rescaling and
        normalising.
    """
    file = folder / "preprocessor_config.json"
    try:
        values = json.loads(file.read_text())
        size = values.get("size", 224) if values.get("do_resize", True) else None
        if isinstance(size, dict) and set(size) != {"height", "width"}:
            raise UserError(f"{file}: size={size!r} is not supported; must have height and width")
        for key in ("do_center_crop", "do_pad"):
            if values.get(key):
                raise UserError(f"{file}: {key}={values[key]!r} is not supported; must be false")
        normalise = values.get("do_normalize", True)
        return Preprocessing(
            size=None if size is None else (size["height"], size["width"]) if isinstance(size, dict) else (size, size),
            resample=Image.Resampling(values.get("resample", Image.Resampling.BILINEAR)),
            scale=float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0,
            mean=tuple(values.get("image_mean", (0.5,) * 3)) if normalise else (0.0,) * 3,
            std=tuple(values.get("image_std", (0.5,) * 3)) if normalise else (1.0,) * 3,
        )
    except UserError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is not a readable preprocessor config ({error})") from error
