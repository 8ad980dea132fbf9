"""Rotary position embeddings (RoFormer, arXiv 2104.09864), in the halves' layout of Hugging Face's checkpoints."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# What each kind of scaling needs beside the base, by config.json's names.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),  # not a config.json's: a divisor per frequency, as GGUF files hold them
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """How fast each pair of a head's dimensions turns with the position, and what part of a head turns at all."""

    rope_theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()
    partial_rotary_factor: float = 1.0

    def turned(self, d_head: int) -> int:
        """How many of a head's dimensions turn: the first ones."""
        return int(d_head * self.partial_rotary_factor)

    def frequencies(self, d_head: int) -> Float[np.ndarray, " half"]:
        """Radians per position, ``[turned(d_head) / 2]``, float32."""
        width = self.turned(d_head)
        base = np.float32(1) / np.float32(self.rope_theta) ** (np.arange(0, width, 2, dtype=np.float32) / width)
        if self.rope_type == "linear":
            return base / np.float32(self.factor)
        if self.rope_type == "factors":
            return base / np.asarray(self.factors, np.float32)
        if self.rope_type == "default":
            return base
        # Llama 3.1: slow frequencies are divided by `factor`, fast ones kept, those between interpolated.
        turns = self.original_max_position_embeddings * base / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return ((1 - kept) * base / self.factor + kept * base).astype(np.float32)


def read_rope(theta: float, values: Mapping[str, Any] | Rope | None) -> Rope:
    """A Rope from config.json's ``rope_theta`` and its ``rope_scaling`` or ``rope_parameters``.

    Raises ValueError for a kind of scaling that is not in `KINDS`, or a key that it lacks.
    """
    if isinstance(values, Rope):
        return values
    values = dict(values or {})
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"rope_type={kind!r} is not supported; must be one of {', '.join(KINDS)}")
    if missing := [key for key in KINDS[kind] if values.get(key) is None]:
        raise ValueError(f"rope_type={kind!r} needs {', '.join(missing)}")
    needed = {key: values[key] for key in KINDS[kind]}
    if "factors" in needed:
        needed["factors"] = tuple(needed["factors"])
    partial = values.get("partial_rotary_factor", 1.0)
    return Rope(rope_theta=values.get("rope_theta", theta), rope_type=kind, partial_rotary_factor=partial, **needed)


def angles(
    positions: Int[Array, "batch tokens"], frequencies: Float[Array, " half"] | Float[np.ndarray, " half"]
) -> Float[Array, "batch tokens half"]:
    """The angle of each pair at each position, float32."""
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "batch tokens heads d_head"], angle: Float[Array, "batch tokens half"]
) -> Float[Array, "batch tokens heads d_head"]:
    """`x` with dimension i and i + half turned as a pair, and those from 2·half on as they are; in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    half = angle.shape[-1]
    first, second, still = jnp.split(wide, (half, 2 * half), axis=-1)
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, still], axis=-1).astype(x.dtype)
