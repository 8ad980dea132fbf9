"""Rotary position embeddings (RoFormer, arXiv 2104.09864): dimension i is paired with i + half, as in transformers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lora_jax.errors import shown
from lora_jax.models.fields import Positive, Share, Size, check_fields

# The keys of config.json that each `rope_type` needs, beside `rope_theta`.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),  # a divisor per frequency, from GGUF files; config.json has no such type
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """The frequency of each pair of a head's dimensions. The names are those of Hugging Face's ``rope_parameters``.

    Attributes:
      partial_rotary_factor: the share of a head's dimensions that is rotated.
    """

    rope_theta: Positive = 10000.0
    rope_type: str = "default"
    factor: Positive = 1.0
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_max_position_embeddings: Size = 8192
    factors: tuple[Positive, ...] = ()
    partial_rotary_factor: Share = 1.0

    def __post_init__(self):
        if self.high_freq_factor == self.low_freq_factor:
            raise ValueError(f"high_freq_factor={self.high_freq_factor}: must differ from low_freq_factor")

    def check(self, d_head: int) -> None:
        """Raises ValueError if it cannot rotate heads of width `d_head`."""
        rotated = self.rotated_dims(d_head)
        if rotated % 2:
            share = f"partial_rotary_factor={self.partial_rotary_factor} of head_dim={d_head}"
            raise ValueError(f"{share} is {rotated} dimensions: rotary embeddings rotate pairs, so it must be even")
        if self.rope_type == "factors" and len(self.factors) != rotated // 2:
            raise ValueError(f"{len(self.factors)} rope factors: must be {rotated // 2}, for head_dim={d_head}")

    def rotated_dims(self, d_head: int) -> int:
        """Returns how many of a head's dimensions are rotated. They are the first ones."""
        return int(d_head * self.partial_rotary_factor)

    def frequencies(self, d_head: int) -> Float[np.ndarray, " half"]:
        """Returns radians per position, ``[rotated_dims(d_head) / 2]``, float32."""
        width = self.rotated_dims(d_head)
        base = np.float32(1) / np.float32(self.rope_theta) ** (np.arange(0, width, 2, dtype=np.float32) / width)
        if self.rope_type == "linear":
            return base / np.float32(self.factor)
        if self.rope_type == "factors":
            return base / np.asarray(self.factors, np.float32)
        if self.rope_type == "default":
            return base
        # Llama 3.1: low frequencies are divided by `factor`, high ones stay, those between are interpolated.
        cycles = self.original_max_position_embeddings * base / (2 * math.pi)
        unscaled = np.clip((cycles - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return ((1 - unscaled) * base / self.factor + unscaled * base).astype(np.float32)


def read_rope(theta: float, values: Mapping[str, Any] | Rope | None) -> Rope:
    """Creates a Rope from config.json's ``rope_theta`` and its ``rope_scaling`` or ``rope_parameters``.

    Args:
      theta: the base of the frequencies, where `values` has no ``rope_theta``.
      values: the other settings. A Rope is returned as it is.

    Raises:
      ValueError: ``rope_type`` is not in ROPE_TYPES, a key that it needs is missing, or a value has a wrong type.
    """
    if isinstance(values, Rope):
        return values
    if not isinstance(values, Mapping | None):
        raise ValueError(f"rope settings {shown(values)}: must be an object")
    values = dict(values or {})
    rope_type = values.get("rope_type", values.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise ValueError(f"rope_type={shown(rope_type)} is not supported; must be one of {', '.join(ROPE_TYPES)}")
    if missing := [key for key in ROPE_TYPES[rope_type] if values.get(key) is None]:
        raise ValueError(f"rope_type={rope_type!r} needs {', '.join(missing)}")
    needed = {key: values[key] for key in ROPE_TYPES[rope_type]}
    if isinstance(needed.get("factors"), list):
        needed["factors"] = tuple(needed["factors"])
    common = {
        "rope_theta": values.get("rope_theta", theta),
        "partial_rotary_factor": values.get("partial_rotary_factor", 1.0),
    }
    return Rope(rope_type=rope_type, **check_fields(Rope, common | needed))


def angles(
    positions: Int[Array, "batch seq"], frequencies: Float[Array, " half"] | Float[np.ndarray, " half"]
) -> Float[Array, "batch seq half"]:
    """Returns the rotation angle of each pair of dimensions at each position, float32."""
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "batch seq heads d_head"], angle: Float[Array, "batch seq half"]
) -> Float[Array, "batch seq heads d_head"]:
    """Rotates the dimensions i and i + half of each head as a pair, in float32 at least.

    The dimensions from 2·half on stay as they are.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    half = angle.shape[-1]
    first, second, rest = jnp.split(wide, (half, 2 * half), axis=-1)
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)
