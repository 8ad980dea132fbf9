"""The contract of a method, what it starts from, and the randomness that it starts with."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from lora_jax.adapters import Padded, Replacement
from lora_jax.config import RunConfig
from lora_jax.delta import Delta, count, parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AdapterInit:
    """What a run starts from.

    Attributes:
      params: what trains, by path; only this goes to the optimizer.
      constants: what does not train and differs between runs (scales, rates, masks), by path.
      trainable: how many numbers train at true sizes, without what only fills up a stack of layers.
    """

    params: dict[str, Padded]
    constants: dict[str, Padded] = dataclasses.field(default_factory=dict)
    trainable: int = dataclasses.field(default=0, metadata={"static": True})


class Method(Protocol):
    """How a run departs from its base.

    A method is a frozen, hashable dataclass. Its fields are the settings that are compiled into the train step; what
    may differ between the runs of a pack is in the constants instead.
    """

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """Returns the method with those of its `settings` that are compiled in. Most methods have none."""
        return cls()

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError where `run` asks for what `base`, which may be abstract, does not have."""

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Returns the parameters that `run` trains, at their true size, and its constants.

        It is traceable by ``jax.eval_shape``, so that sizes and counts cost nothing.
        """
        ...

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the delta to graft; pure and traced."""
        ...

    def learning_rate_multipliers(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
        """Returns factors on the learning rate, a tree like `params` that broadcasts to it; None for 1 everywhere."""
        return None

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns the floating-point operations of a training step for each token.

        A frozen weight takes 4 (forward, and the gradient of what goes in), a trained one 6. `kernels` counts the
        base's weights that take part in products; `params` may be shapes.
        """
        return 4.0 * kernels + 6.0 * count(params)


def key_of(seed: int, path: str) -> PRNGKeyArray:
    """Returns the key for one path of one run: it depends on nothing else, least of all on a place in a pack."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))


def init_head(base: nnx.Module, seed: int, *, std: float = 0.02) -> dict[str, Padded]:
    """Draws a fresh head, which every method trains: kernel N(0, std²), bias 0; the same for a seed in every method."""
    head: dict[str, Padded] = {}
    for path, value in parameters(base).items():
        if path.startswith("head/"):
            wide = jnp.promote_types(value.dtype, jnp.float32)
            if path.endswith("kernel"):
                fresh = std * jax.random.normal(key_of(seed, path), value.shape, wide)
            else:
                fresh = jnp.zeros(value.shape, wide)
            head[path] = Replacement(fresh)
    return head
