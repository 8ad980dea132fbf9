"""Decodes image files of the user, of which neither the kind nor the size is known."""

import io
import struct
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from lora_jax.errors import UserError, message_of

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a channel at most


def decode(content: bytes, where: str) -> Image.Image:
    """Returns the RGB image in a file, the first one if there are several, upright as its EXIF data say.

    Args:
      content: of the file.
      where: names the file in an error.

    Raises:
      UserError: the file is no image of FORMATS, is damaged, has more pixels than Pillow allows
        (``Image.MAX_IMAGE_PIXELS``), or more than 8 bits a channel.
    """
    accepted = f"expected an image in {', '.join(FORMATS)}"
    try:
        with warnings.catch_warnings():
            # A file of a few kB may claim gigabytes of pixels.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.mode not in _MODES:
            raise UserError(f"{where} has pixels of Pillow's mode {image.mode}; expected 8 bits a channel")
        return ImageOps.exif_transpose(image).convert("RGB")
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{where} is not a readable image; {accepted}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{where} has more than {Image.MAX_IMAGE_PIXELS} pixels; expected at most so many") from None
    # What Pillow's decoders raise for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, KeyError, struct.error) as error:
        raise UserError(f"{where} is a damaged image ({message_of(error)}); {accepted}") from error


def squared(image: Image.Image, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Returns the pixels of an image whose short side is resized to `side`, and whose centre is then cut out."""
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))
