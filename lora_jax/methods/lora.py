"""LoRA (Hu et al., arXiv 2106.09685): W + s·A·B, with A and B trained and W frozen.

B starts at zero. A starts at U(-1/√d_in, 1/√d_in), as loralib and PEFT do (``kaiming_uniform(a=√5)``), or at
N(0, 1/d_in), the Gaussian that the paper names. An embedding's pair starts the other way round, as loralib's and
PEFT's do: A, whose rows are looked up, at zero and B at N(0, 1).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from lora_jax.adapters import LowRank, Padded, Scaling
from lora_jax.config import LoraSettings, RunConfig
from lora_jax.delta import SLOT, Delta, count
from lora_jax.methods.method import AdapterInit, Method, init_head, key_of
from lora_jax.targets import Placement, place

SCALINGS = {
    "lora": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),  # arXiv 2312.03732, eq. 4
    "constant": lambda alpha, rank: alpha,
}


@dataclasses.dataclass(frozen=True)
class Lora(Method):
    """Trains a low-rank pair for every target, and a new head. All of its settings are data."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError for targets, ranks and patterns that `base` does not have, as `targets.place`."""
        placements(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Draws a pair for every target at its true rank, and a head.

        Returns:
          ``params["<site>/adapter"]`` is ``LowRank(a=[layers, d_in, r], b=[layers, r, d_out])``, where r is the largest
          rank of the site in any layer. ``constants`` has a `Scaling` at the same path.

        Raises:
          UserError: as `validate`.
        """
        settings = _settings(run)
        params: dict[str, Padded] = {}
        constants: dict[str, Padded] = {}
        trainable = 0
        for path, placement in placements(base, run).items():
            site = placement.site
            params[f"{path}/{SLOT}"] = _pair(placement, run.initial_seed, settings.init)
            constants[f"{path}/{SLOT}"] = _scaling(placement, settings)
            trainable += int(placement.rank.sum()) * (site.d_in + site.d_out)
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the pairs, with their scale folded into B and with their dropout rate, and the head."""

        def scaled(pair: LowRank, scaling: Scaling) -> LowRank:
            rate = scaling.dropout
            b = pair.b * scaling.scale[..., None, None].astype(pair.b.dtype)
            return LowRank(pair.a, b, None if rate is None else jnp.broadcast_to(rate, scaling.scale.shape))

        return {path: scaled(value, constants[path]) if path in constants else value for path, value in params.items()}


def placements(base: nnx.Module, run: RunConfig) -> dict[str, Placement]:
    """Returns the rank and alpha of every site that `run` adapts. Raises UserError as `targets.place`."""
    settings = _settings(run)
    return place(base, run.targets, run.rank, run.alpha_of, settings.rank_pattern, settings.alpha_pattern)


def _settings(run: RunConfig) -> LoraSettings:
    assert isinstance(run.method, LoraSettings)
    return run.method


def _scaling(placement: Placement, settings: LoraSettings) -> Scaling:
    factors = [
        SCALINGS[settings.scaling](float(alpha), int(rank)) if rank else 0.0
        for alpha, rank in zip(placement.alpha, placement.rank, strict=True)
    ]
    scale = np.asarray(factors if placement.site.layers else factors[0], _wide())
    dropout = np.full(scale.shape, settings.dropout, np.float32) if settings.dropout else None
    return Scaling(scale, dropout)  # type: ignore[arg-type]


def _pair(placement: Placement, seed: int, init: str) -> LowRank:
    site, rank = placement.site, int(placement.rank.max())
    # The stream's name is older than the slot's: a seed gives the numbers that it has always given.
    key = key_of(seed, f"{site.path}/lora")
    if site.lookup:
        rows = jax.random.normal(key, (rank, site.d_out), _wide())
        return LowRank(np.zeros((site.d_in, rank), _wide()), rows)  # type: ignore[arg-type]
    a = _draw(key, tuple(placement.rank.tolist()), site.d_in, init)
    layers = () if site.layers is None else (site.layers,)
    b = np.zeros((*layers, rank, site.d_out), _wide())
    return LowRank(a.reshape(*layers, site.d_in, rank), b)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: PRNGKeyArray, ranks: tuple[int, ...], d_in: int, init: str) -> Float[Array, "layers d_in rank"]:
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


def _wide() -> Any:
    return jnp.zeros(()).dtype  # float32, or float64 where JAX_ENABLE_X64 asks for it
