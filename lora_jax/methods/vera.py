"""VeRA (Kopiczko et al., arXiv 2310.11454): W + A·diag(d)·B·diag(b), with d and b trained, W, A and B frozen.

One random pair A, B serves all sites. As in PEFT, it has the sizes of the run's largest site, and a smaller site uses
A's first rows and B's first columns. Entries are uniform (``kaiming_uniform``): A in ±√(6/d_in), B in ±√(6/r). d starts
at ``method.d_initial`` and b at zero, so ΔW starts at zero.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.adapters import LowRank, Padded, VeraProjections, VeraVectors
from lora_jax.config import RunConfig
from lora_jax.config.methods import VeraSettings
from lora_jax.delta import SLOT, Delta, count
from lora_jax.methods.method import AdapterInit, Method, init_head, key_of
from lora_jax.targets import Site, select_linear


@dataclasses.dataclass(frozen=True)
class Vera(Method):
    """Trains two vectors for every target, and a new head. All of its settings are data."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError for targets that `base` does not have, or that are embeddings."""
        select_linear(base, run.targets, method="vera")

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Draws A and B, and a head, and fills the vectors. Layers that are not adapted have zeros.

        Returns:
          ``params["<site>/adapter"]`` is ``VeraVectors(d=[layers, r], b=[layers, d_out])``. ``constants`` has the
          site's parts of A and B at the same path.

        Raises:
          UserError: as `validate`.
        """
        settings = _settings(run)
        targets = select_linear(base, run.targets, method="vera")
        a, b = _draw(settings.projection_seed, run.rank, [site for site, _ in targets])
        params: dict[str, Padded] = {}
        constants: dict[str, Padded] = {}
        trainable = 0
        for site, active in targets:
            layers = active if site.layers else active[0]
            d = np.where(layers[..., None], settings.d_initial, np.zeros(run.rank)).astype(a.dtype)
            path = f"{site.path}/{SLOT}"
            params[path] = VeraVectors(d, np.zeros((*layers.shape, site.d_out), a.dtype))  # type: ignore[arg-type]
            constants[path] = VeraProjections(a[: site.d_in], b[:, : site.d_out])
            trainable += int(active.sum()) * (run.rank + site.d_out)
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the low-rank pairs A·diag(d) and B·diag(b), and the head."""

        def pair(vectors: VeraVectors, shared: VeraProjections) -> LowRank:
            return LowRank(shared.a * vectors.d[..., None, :], shared.b * vectors.b[..., None, :])

        return {path: pair(value, constants[path]) if path in constants else value for path, value in params.items()}

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns 4 per weight of the base, of A and of B. It counts A of each site as large as B."""
        vectors = [value for path, value in params.items() if path.endswith(f"/{SLOT}")]
        projections: float = sum(2 * value.d.size * value.b.shape[-1] for value in vectors)
        return 4.0 * (kernels + projections) + 6.0 * count(params)


def _settings(run: RunConfig) -> VeraSettings:
    assert isinstance(run.method, VeraSettings)
    return run.method


def _draw(seed: int, rank: int, targets: list[Site]) -> tuple[Float[Array, "d_in rank"], Float[Array, "rank d_out"]]:
    """Draws A and B with the largest sizes of `targets`."""
    d_in, d_out = max(site.d_in for site in targets), max(site.d_out for site in targets)
    wide = jnp.zeros(()).dtype  # float32, or float64 where JAX_ENABLE_X64 asks for it

    def uniform(name: str, shape: tuple[int, int], fan_in: int) -> Array:
        bound = math.sqrt(6 / fan_in)
        return jax.random.uniform(key_of(seed, f"vera/{name}"), shape, wide, -bound, bound)

    return uniform("a", (d_in, rank), d_in), uniform("b", (rank, d_out), rank)
