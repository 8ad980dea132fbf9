"""The choice between Pallas kernels and XLA. It does not import Pallas, which takes a second or more."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lora_jax.errors import UserError
from lora_jax.models.attention import cuda_capability

IMPLEMENTATIONS = ("auto", "pallas", "xla")
MAX_WIDTH = 2048  # At the widths of Llama-3-8B, cuBLAS gains more on x·W than fewer kernels save.


def uses_pallas(
    implementation: str,
    dtype: DTypeLike,
    *,
    capability: Callable[[], tuple[int, int] | None] = cuda_capability,
    version: tuple[int, ...] = jax.__version_info__,
) -> bool:
    """Returns whether Pallas kernels apply low-rank pairs. Otherwise XLA does.

    Where they do, single products whose shapes do not fit are still XLA's: `low_rank.fits`.

    Args:
      implementation: one of IMPLEMENTATIONS. ``auto`` takes Pallas wherever it works, and XLA elsewhere.
      dtype: the dtype of activations and matmuls.
      capability: returns the device's compute capability.
      version: JAX's version.

    Raises:
      UserError: `implementation` is ``pallas`` and an obstacle holds, or is not one of IMPLEMENTATIONS.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"model.kernel={implementation!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "xla":
        return False
    device, dtype = capability(), jnp.dtype(dtype)
    obstacles = {
        "this device is no CUDA GPU": device is None,
        # Other GPUs from 8.0 on have less shared memory for a block, or were never tried.
        "this GPU's compute capability is not 8.0 or 9.0": device not in (None, (8, 0), (9, 0)),
        f"dtype={dtype.name} is not bfloat16 or float16": dtype not in (jnp.bfloat16, jnp.float16),
        # Not measured before.
        f"jax {'.'.join(map(str, version))} is older than 0.11.1": version < (0, 11, 1),
    }
    reasons = [reason for reason, holds in obstacles.items() if holds]
    if implementation == "pallas" and reasons:
        raise UserError(f"model.kernel=pallas is not available: {'; '.join(reasons)}. Use auto or xla")
    return not reasons
