"""Frozen kernels at 4 and 8 bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314) and int8.

A quantised kernel replaces an array and has an array's `shape`, `size`, `dtype` and `astype`. It is a pytree of narrow
arrays, which ``jax.jit`` and ``jax.lax.scan`` take like any kernel and which ``vmap`` over runs does not touch.

The formats are implemented here because no library has them: bitsandbytes is for torch only. qwix 0.1.8 has a QArray
that would do for int8, but no double quantisation, and its NF4 codes are uint4, which a CPU stores one to a byte.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt8

# The code book in QLoRA's appendix E.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
BLOCK = 64  # the number of weights that share an absmax
GROUP = 256  # the number of absmaxes that share a scale


@dataclasses.dataclass(frozen=True)
class Quantised:
    """A kernel ``[..., d_in, d_out]`` at fewer bits.

    Attributes:
      dtype: the dtype of the original kernel, and of the one that merging gives.
    """

    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def size(self) -> int:
        """The number of weights that it represents."""
        return math.prod(self.shape)

    def astype(self, dtype: DTypeLike) -> Float[Array, "... d_in d_out"]:
        """Returns the dequantised kernel, computed in float32."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel(Quantised):
    """Symmetric int8 with a scale for each output: |w - ŵ| is at most 1/254 of the output's largest |w|.

    A scale per block is not needed at 8 bits. With one per output, dequantising is one cast and one multiplication.
    """

    codes: Int8[Array, "... d_in d_out"]
    scale: Float[Array, "... 1 d_out"]

    @classmethod
    def quantise(cls, kernel: Float[Array, "... d_in d_out"]) -> "Int8Kernel":
        return cls(kernel.dtype, *_to_int8(kernel.astype(jnp.float32), axis=-2))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def astype(self, dtype: DTypeLike) -> Float[Array, "... d_in d_out"]:
        return (self.codes * self.scale).astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4Kernel(Quantised):
    """4-bit NormalFloat in blocks of 64 inputs of one output (bitsandbytes' blocks, where 64 divides d_in).

    A block's absmax is stored as offset + scale·int8, with one offset per kernel and one scale per 256 absmaxes: 4.127
    bits per weight in all. QLoRA stores these 8 bits as floating point. Even steps have the bound below, and ŵ is as
    close to w as in bitsandbytes (the rms error is 2% larger on MiniLM's worst kernel, slightly smaller on the others).

    |w - ŵ| is at most half the widest gap of the code book (0.152) times the block's absmax, plus the error of the
    absmax itself, which is at most 1/254 of its group's largest distance from the offset.
    """

    # A byte holds two rows of a block, half a block apart, the first in its low bits.
    codes: UInt8[Array, "... half_d_in d_out"]
    absmax: Int8[Array, "... groups 256"]
    scale: Float[Array, "... groups 1"]
    offset: Float[Array, "..."]
    d_in: int = dataclasses.field(metadata={"static": True})  # without the zeros that pad the last block

    @classmethod
    def quantise(cls, kernel: Float[Array, "... d_in d_out"]) -> "Nf4Kernel":
        *layers, d_in, d_out = kernel.shape
        rows = _pad_to_multiple(kernel.astype(jnp.float32), BLOCK, axis=-2)
        halves = rows.reshape(*layers, -1, 2, BLOCK // 2, d_out)
        absmax = jnp.abs(halves).max((-3, -2))
        unit = halves / jnp.where(absmax > 0, absmax, 1)[..., None, None, :]
        nibbles = sum((unit > middle).astype(jnp.uint8) for middle in (NF4[1:] + NF4[:-1]) / 2)
        codes = nibbles[..., 0, :, :] | nibbles[..., 1, :, :] << 4
        offset = absmax.mean((-2, -1))
        flat = (absmax - offset[..., None, None]).reshape(*layers, -1)
        groups = _pad_to_multiple(flat, GROUP, axis=-1).reshape(*layers, -1, GROUP)
        return cls(kernel.dtype, codes.reshape(*layers, -1, d_out), *_to_int8(groups, axis=-1), offset, d_in)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-2], self.d_in, self.codes.shape[-1])

    def astype(self, dtype: DTypeLike) -> Float[Array, "... d_in d_out"]:
        *layers, half, d_out = self.codes.shape
        blocks = 2 * half // BLOCK
        spread = (self.absmax * self.scale).reshape(*layers, -1)[..., : blocks * d_out]
        absmax = spread.reshape(*layers, blocks, 1, 1, d_out) + self.offset[..., None, None, None, None]
        # A broadcast and a shift put each row where it belongs, and XLA fuses all of this into one loop.
        pairs = self.codes.reshape(*layers, blocks, 1, BLOCK // 2, d_out)
        nibbles = pairs >> jnp.array([0, 4], jnp.uint8)[:, None, None] & 15
        rows = (jnp.asarray(NF4).at[nibbles].get(mode="promise_in_bounds") * absmax).astype(dtype)
        return rows.reshape(*layers, blocks * BLOCK, d_out)[..., : self.d_in, :]


KINDS: dict[str, type[Int8Kernel] | type[Nf4Kernel]] = {"int8": Int8Kernel, "nf4": Nf4Kernel}


@functools.partial(jax.jit, static_argnames="kind")
def quantise(kernel: Float[Array, "... d_in d_out"], kind: str) -> Quantised:
    """Quantises `kernel` to the format ``KINDS[kind]``, each kernel of a stack separately."""
    return KINDS[kind].quantise(kernel)


def is_quantised(node: Any) -> bool:
    """Returns whether `node` is a quantised kernel: an ``is_leaf`` for ``jax.tree`` functions."""
    return isinstance(node, Quantised)


def quantisable(path: str) -> bool:
    """Returns whether a quantised base quantises the parameter at `path`: the kernels of its blocks.

    Embeddings, norms, biases, heads and `lm_head` are not quantised, as in QLoRA.
    """
    return re.search(r"(^|/)layers/.*/kernel$", path) is not None


def _to_int8(x: Float[Array, "..."], axis: int) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Returns (codes, scale) with x ≈ codes · scale and one scale along `axis`."""
    scale = jnp.abs(x).max(axis, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def _pad_to_multiple(x: Float[Array, "..."], size: int, axis: int) -> Float[Array, "..."]:
    """Appends zeros along `axis`, up to a multiple of `size`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths)
