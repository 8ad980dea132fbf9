"""How a model computes: settings that every model, head and decoding function takes as `options`."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Settings of a forward pass that change its precision, speed and memory, but not what it computes.

    They are hashable, so they can be a static argument of ``jax.jit``.

    Attributes:
      dtype: the dtype of activations and matmuls. Parameters are cast to it where they are used. Norms and softmax
        compute in float32 at least.
      unroll: layers per iteration of the loop over layers, as in ``jax.lax.scan``. True unrolls all of them.
      remat: what the forward pass saves for the backward pass, one of `layers.REMAT`: ``none`` saves everything,
        ``dots`` the results of matmuls, ``layer`` the input of each layer.
      attention: the implementation of attention, one of `attention.IMPLEMENTATIONS`: ``auto``, ``xla`` or ``cudnn``.
    """

    dtype: DTypeLike = jnp.float32
    unroll: int | bool = 1
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        # "float32", np.float32 and jnp.float32 must be equal here and have one hash.
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
