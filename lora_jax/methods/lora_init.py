"""The initial A and B of LoRA's sites.

B starts at zero. A starts at U(-1/√d_in, 1/√d_in), as loralib and PEFT do (``kaiming_uniform(a=√5)``), or at
N(0, 1/d_in), the Gaussian that the LoRA paper names. An embedding's pair starts the other way round, as loralib's and
PEFT's do: A, whose rows are looked up, at zero and B at N(0, 1).

PiSSA (Meng et al., arXiv 2404.02948) starts from the kernel's largest singular triplets (section 3), LoRA-GA (Wang et
al., arXiv 2407.05000) from singular vectors of its gradient (Algorithm 1).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lora_jax.adapters import LowRank
from lora_jax.models.quantised import Quantised
from lora_jax.targets import Placement

# (matrix [d_in, d_out], scale, the layer's rank, the site's largest rank) -> (a [d_in, largest], b [largest, d_out]).
# What is beyond the layer's rank is ignored.
Factors = Callable[[Array, Array, Array, int], tuple[Array, Array]]


def random_pair(placement: Placement, seed_key: PRNGKeyArray, init: str) -> LowRank:
    """Draws a pair whose product is zero, each layer at its own rank, zero-padded to the site's largest.

    Args:
      placement: the site and its ranks.
      seed_key: the key of the run's seed and the site.
      init: ``uniform`` or ``gaussian``. An embedding is always Gaussian.
    """
    site, rank = placement.site, int(placement.rank.max())
    if site.lookup:
        rows = jax.random.normal(seed_key, (rank, site.d_out), _wide())
        return LowRank(np.zeros((site.d_in, rank), _wide()), rows)  # type: ignore[arg-type]
    a = random_a(seed_key, tuple(placement.rank.tolist()), site.d_in, init)
    layers = () if site.layers is None else (site.layers,)
    b = np.zeros((*layers, rank, site.d_out), _wide())
    return LowRank(a.reshape(*layers, site.d_in, rank), b)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def random_a(key: PRNGKeyArray, ranks: tuple[int, ...], d_in: int, init: str) -> Float[Array, "layers d_in rank"]:
    """Draws A for every layer at the layer's own rank, zero-padded to the largest."""

    def draw(layer: Any, rank: int) -> Array:
        # A layer's numbers depend on its own index, so adapting fewer layers changes nothing in the others.
        layer_key = jax.random.fold_in(key, layer)
        if init == "gaussian":
            return jax.random.normal(layer_key, (d_in, rank), _wide()) / math.sqrt(d_in)
        bound = 1 / math.sqrt(d_in)
        return jax.random.uniform(layer_key, (d_in, rank), _wide(), -bound, bound)

    a = jnp.zeros((len(ranks), d_in, max(ranks)), _wide())
    for rank in sorted(set(ranks) - {0}):
        layers = np.flatnonzero(np.array(ranks) == rank)
        a = a.at[layers, :, :rank].set(jax.vmap(functools.partial(draw, rank=rank))(layers))
    return a


def pair_from(
    matrices: Float[Array, "*layers d_in d_out"] | Quantised, placement: Placement, scale: Any, factors: Factors
) -> LowRank:
    """Computes a pair from a matrix of each layer. Its product, times the layer's scale, is not zero.

    Args:
      matrices: kernels, which may be quantised, or their gradients.
      placement: the site and its ranks.
      scale: the factor on A·B, ``[layers]``.
      factors: computes one layer's pair.
    """
    stacked = placement.site.layers is not None
    matrices = matrices if stacked else jax.tree.map(lambda leaf: leaf[None], matrices)
    pair: LowRank = _pair_from(matrices, jnp.reshape(jnp.asarray(scale), -1), tuple(placement.rank.tolist()), factors)
    return pair if stacked else jax.tree.map(lambda leaf: leaf[0], pair)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _pair_from(matrices: Any, scale: Float[Array, " layers"], ranks: tuple[int, ...], factors: Factors) -> LowRank:
    layers, largest = np.flatnonzero(ranks), max(ranks)

    def compute(layer: Array) -> tuple[Array, Array]:
        # One layer at a time: a singular value decomposition needs several times its matrix's memory.
        matrix = jax.tree.map(lambda leaf: leaf[layer], matrices).astype(_wide())
        rank = jnp.asarray(ranks)[layer]
        a, b = factors(matrix, scale[layer], rank, largest)
        within = jnp.arange(largest) < rank
        return jnp.where(within, a, 0), jnp.where(within[:, None], b, 0)

    a, b = jax.lax.map(compute, jnp.asarray(layers))
    return LowRank(*(jnp.zeros((len(ranks), *part.shape[1:]), _wide()).at[layers].set(part) for part in (a, b)))


def principal_factors(kernel: Array, scale: Array, rank: Array, largest: int) -> tuple[Array, Array]:
    """Returns PiSSA's A = U·√(S/s) and B = √(S/s)·Vᵀ of the largest singular values, so that s·A·B is their part of W.

    The division by the scale s is PEFT's. The paper has s = 1.
    """
    u, s, vt = jnp.linalg.svd(kernel, full_matrices=False)
    root = jnp.sqrt(s[:largest] / scale)
    return u[:, :largest] * root, root[:, None] * vt[:largest]


def gradient_pair(gradients: Array, placement: Placement, scale: Any, gamma: float) -> LowRank:
    """Returns LoRA-GA's pair, with its stable scale d_out^(1/4)/√γ on A and B.

    PEFT 0.21 differs from the paper: its A has no scale, and its B has the singular values as well.
    """
    pair = pair_from(gradients, placement, scale, _gradient_factors)
    stable = placement.site.d_out**0.25 / math.sqrt(gamma)
    return jax.tree.map(lambda factor: stable * factor, pair)  # type: ignore[no-any-return]


def _gradient_factors(gradient: Array, scale: Array, rank: Array, largest: int) -> tuple[Array, Array]:
    """Returns A, the first r left singular vectors, and B, the right ones from r to 2r (Algorithm 1)."""
    u, _, vt = jnp.linalg.svd(gradient, full_matrices=False)
    return u[:, :largest], jax.lax.dynamic_slice_in_dim(vt, rank, largest)


def _wide() -> Any:
    return jax.dtypes.canonicalize_dtype(float)  # float32, or float64 where JAX_ENABLE_X64 asks for it
