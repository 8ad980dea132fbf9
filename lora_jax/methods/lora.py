"""LoRA (Hu et al., arXiv 2106.09685): W + s·A·B, with A and B trained and W frozen.

A is ``[d_in, r]`` and B ``[r, d_out]``; the paper's eq. 3 has the transposed kernel, W + (α/r)·B·A. B starts at
zero. A starts at U(-1/√d_in, 1/√d_in), as loralib and PEFT do (``kaiming_uniform(a=√5)``), or at N(0, 1/d_in), the
Gaussian that the paper names. An embedding's pair starts the other way round, as loralib's and PEFT's do: A, whose
rows are looked up, at zero and B at N(0, 1).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.config import LoraConfig, RunConfig
from lora_jax.delta import Delta
from lora_jax.methods.start import Start, head, key_of
from lora_jax.targets import Placement, place

SCALINGS = {
    "lora": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),  # arXiv 2312.03732, eq. 4
    "constant": lambda alpha, rank: alpha,
}


def check(base: nnx.Module, run: RunConfig) -> dict[str, Placement]:
    """Where `run` puts its pairs. Raises UserError as targets.place does."""
    method = _settings(run)
    return place(base, run.targets, run.rank, run.alpha_of, method.rank_pattern, method.alpha_pattern)


def start(base: nnx.Module, run: RunConfig) -> Start:
    """A pair per target, at its true rank, and a fresh head; the scale of each layer, and the input's dropout rate.

    ``params["<site>/lora"]`` is {"a": [layers, d_in, r], "b": [layers, r, d_out]}, with r the largest rank that the
    site has in any layer; ``constants["scale"]["<site>/lora"]`` is [layers]. Raises UserError as check does.
    """
    method = _settings(run)
    params: Delta = {}
    scale = {}
    for path, placement in check(base, run).items():
        slot = f"{path}/lora"
        params[slot] = _pair(placement, run.seed, slot, method.init)
        factors = [
            SCALINGS[method.scaling](float(alpha), int(rank)) if rank else 0.0
            for alpha, rank in zip(placement.alpha, placement.rank, strict=True)
        ]
        scale[slot] = jnp.asarray(factors if placement.site.layers else factors[0], _wide())
    constants: dict[str, Any] = {"scale": scale}
    if method.dropout:
        constants["dropout"] = jnp.asarray(method.dropout, jnp.float32)
    return Start(params | head(base, run.seed), constants)


def materialise(params: Delta, constants: dict) -> Delta:
    """The delta to graft: each pair's scale folded into its B, its input's dropout rate beside it."""
    ready: Delta = {}
    for path, value in params.items():
        if not isinstance(value, dict):
            ready[path] = value
            continue
        scale = constants["scale"][path]
        ready[path] = {"a": value["a"], "b": value["b"] * scale[..., None, None].astype(value["b"].dtype)}
        if "dropout" in constants:
            ready[path]["dropout"] = jnp.broadcast_to(constants["dropout"], scale.shape)
    return ready


def _settings(run: RunConfig) -> LoraConfig:
    assert isinstance(run.method, LoraConfig)
    return run.method


def _pair(placement: Placement, seed: int, slot: str, init: str) -> dict[str, jax.Array]:
    site, rank = placement.site, int(placement.rank.max())
    if site.lookup:
        rows = jax.random.normal(key_of(seed, slot), (rank, site.d_out), _wide())
        return {"a": jnp.zeros((site.d_in, rank), _wide()), "b": rows}
    layers = len(placement.rank)
    a = np.zeros((layers, site.d_in, rank), _wide())
    for own in np.unique(placement.rank[placement.rank > 0]):
        index = np.flatnonzero(placement.rank == own)
        with jax.ensure_compile_time_eval():  # so that jax.eval_shape can ask for the shapes alone
            a[index, :, :own] = _draw(key_of(seed, slot), index, site.d_in, int(own), init)
    b = np.zeros((layers, rank, site.d_out), _wide())
    if site.layers is None:
        a, b = a[0], b[0]
    return {"a": jnp.asarray(a), "b": jnp.asarray(b)}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _draw(key: jax.Array, layers: jax.Array, d_in: int, rank: int, init: str) -> jax.Array:
    # A layer's numbers depend on its own index, so adapting fewer layers changes nothing in the others.
    def one(layer):
        own = jax.random.fold_in(key, layer)
        if init == "gaussian":
            return jax.random.normal(own, (d_in, rank), _wide()) / math.sqrt(d_in)
        bound = 1 / math.sqrt(d_in)
        return jax.random.uniform(own, (d_in, rank), _wide(), -bound, bound)

    return jax.vmap(one)(layers)


def _wide():
    return jnp.zeros(()).dtype  # float32, or float64 where JAX_ENABLE_X64 asks for it
