"""MiSS (Kang & Yin, arXiv 2409.15371; Bone in earlier versions): y = x·W + s·D, with D of ``[r, d_out]`` trained.

s is the sum of x over its shards of r neighbouring inputs (the last shard is padded with zeros), so ΔW is D, repeated
along d_in: its row i is D's row ``i mod r``. D starts at zero. This is PEFT's `MissConfig` with its default
``init_weights=True``.

The shards depend on the rank, so D alone cannot be padded. ΔW is written as P·D instead, where P's row i has a one in
column ``i mod r``. Zero columns of P and zero rows of D change nothing, so runs of different ranks share a pack.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import LowRank, MissBlock, MissIndex, Padded
from lora_jax.config import RunConfig
from lora_jax.delta import SLOT, Delta, count
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head
from lora_jax.targets import select_linear


@dataclasses.dataclass(frozen=True)
class Miss(Method):
    """Trains a matrix for every target, and a new head. All of its settings are data."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError for targets that `base` does not have or that are embeddings, and for too large a rank."""
        for site, _ in select_linear(base, run.targets, method="miss"):
            if run.rank > site.d_in:
                raise UserError(f"rank={run.rank}: {site.path} has {site.d_in} inputs, so its rank is at most that")

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Returns a zero D for every target, and a head.

        Returns:
          ``params["<site>/adapter"]`` is ``MissBlock(d=[layers, r, d_out])``. ``constants`` has a `MissIndex` at the
          same path.

        Raises:
          UserError: as `validate`.
        """
        self.validate(base, run)
        params: dict[str, Padded] = {}
        constants: dict[str, Padded] = {}
        trainable = 0
        wide = jnp.zeros(()).dtype  # float32, or float64 where JAX_ENABLE_X64 asks for it
        for site, active in select_linear(base, run.targets, method="miss"):
            layers = active if site.layers else active[0]
            path = f"{site.path}/{SLOT}"
            index = np.where(layers[..., None], np.arange(site.d_in) % run.rank, -1).astype(np.int32)
            params[path] = MissBlock(jnp.zeros((*layers.shape, run.rank, site.d_out), wide))
            constants[path] = MissIndex(index)  # type: ignore[arg-type]
            trainable += int(active.sum()) * run.rank * site.d_out
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the low-rank pairs P and D, and the head."""

        def pair(block: MissBlock, shards: MissIndex) -> LowRank:
            rank = block.d.shape[-2]
            return LowRank(jax.nn.one_hot(shards.index, rank, dtype=block.d.dtype), block.d)

        return {path: pair(value, constants[path]) if path in constants else value for path, value in params.items()}

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns 4 per weight of the base and of P, and 6 per trained value. It counts P of a site as large as D."""
        blocks = count([value for path, value in params.items() if path.endswith(f"/{SLOT}")])
        return 4.0 * (kernels + blocks) + 6.0 * count(params)
