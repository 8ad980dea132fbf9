"""Preprocesses images: resizes, rescales and normalises them as a model's preprocessor_config.json says."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from lora_jax.errors import UserError, shown
from lora_jax.models.fields import Positive, check_fields
from lora_jax.weights.json_file import read_object


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
    values = read_object(file)
    try:
        config = _Config(**check_fields(_Config, values))
        resample = Image.Resampling(config.resample)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    height, width = (config.size[key] for key in _SIDES) if isinstance(config.size, Mapping) else (config.size,) * 2
    return Preprocessing(
        size=(height, width) if config.do_resize else None,
        resample=resample,
        scale=float(config.rescale_factor) if config.do_rescale else 1.0,
        mean=tuple(config.image_mean) if config.do_normalize else (0.0,) * 3,
        std=tuple(config.image_std) if config.do_normalize else (1.0,) * 3,
    )


_SIDES = ("height", "width")
_Side = Annotated[int, Field(ge=1, le=2**14)]
_Means = Annotated[Sequence[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]
_Deviations = Annotated[Sequence[Positive], Field(min_length=3, max_length=3)]


@dataclasses.dataclass(frozen=True)
class _Config:
    """The keys of preprocessor_config.json, with the defaults of ViTImageProcessor."""

    do_resize: bool = True
    size: _Side | Mapping[str, _Side] = 224
    resample: int = Image.Resampling.BILINEAR
    do_rescale: bool = True
    rescale_factor: Positive = 1 / 255
    do_normalize: bool = True
    image_mean: _Means = (0.5,) * 3
    image_std: _Deviations = (0.5,) * 3
    do_center_crop: bool | None = None
    do_pad: bool | None = None

    def __post_init__(self):
        if isinstance(self.size, Mapping) and set(self.size) != set(_SIDES):
            raise ValueError(f"size={shown(self.size)} is not supported; must have height and width")
        for key in ("do_center_crop", "do_pad"):
            if getattr(self, key):
                raise ValueError(f"{key}={getattr(self, key)!r} is not supported; must be false")
