"""The `Method` protocol, the initial adapters of a run, and the random keys that they are drawn with."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from lora_jax.adapters import OutputReplacement, Padded, Replacement
from lora_jax.config import RunConfig
from lora_jax.delta import Delta, count, parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AdapterInit:
    """The initial parameters of a run, and its constants.

    Attributes:
      params: the trained parameters, by path. The optimizer gets only these.
      constants: values that do not train and may differ between runs (scales, dropout rates, masks), by path.
      trainable: the number of trained values at true sizes, without the padding of layers that do not train.
    """

    params: dict[str, Padded]
    constants: dict[str, Padded] = dataclasses.field(default_factory=dict)
    trainable: int = dataclasses.field(default=0, metadata={"static": True})


class Method(Protocol):
    """A way to fine-tune a base.

    A method is a frozen, hashable dataclass. Its fields are the settings that are compiled into the train step. What
    may differ between the runs of a pack is in the constants instead.

    Attributes:
      ensemble: evaluation averages the outputs of so many dropout masks. 1: there are none.
    """

    ensemble: int = 1

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """Returns the method, with those of its `settings` that are compiled in. Most methods have none."""
        return cls()

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if the settings of `run` do not fit `base`, which may be abstract."""

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Returns the parameters that `run` trains, at their true sizes, and its constants.

        ``jax.eval_shape`` must be able to trace it, so that shapes are known before anything is allocated.
        """
        ...

    def gradient_paths(self, base: nnx.Module, run: RunConfig) -> tuple[str, ...]:
        """Returns the paths of the weights whose gradients `init_from_gradients` reads. Most methods read none."""
        return ()

    def gradient_batches(self, run: RunConfig) -> int:
        """Returns the number of training batches that these gradients are the mean of."""
        return 0

    def init_from_gradients(self, base: nnx.Module, run: RunConfig, gradients: Mapping[str, Array]) -> AdapterInit:
        """Returns what `init` does, for a method that starts from the loss's gradients.

        Args:
          base: the frozen model.
          run: the settings.
          gradients: for each of `gradient_paths`, the mean gradient of the loss of the base with the run's new head.
        """
        return self.init(base, run)

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the delta to graft. It is pure, and traced in the train step."""
        ...

    def learning_rate_multipliers(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
        """Returns factors on the learning rate, a tree like `params` whose leaves broadcast to theirs.

        A factor of 0 freezes what it belongs to. None stands for 1 everywhere.
        """
        return None

    def flops_per_token(self, kernels: int, params: Any) -> float:
        """Returns the floating-point operations of a training step for each token.

        A frozen weight takes 4 (the forward pass and the gradient of its input), a trained weight 6.

        Args:
          kernels: the number of the base's weights in matrix products.
          params: the trained parameters, arrays or shapes.
        """
        return 4.0 * kernels + 6.0 * count(params)


def key_of(seed: int, path: str) -> PRNGKeyArray:
    """Returns the random key for one path of one run. It does not depend on the run's place in a pack."""
    key: PRNGKeyArray = _key(np.int64(seed), np.uint32(zlib.crc32(path.encode())))
    return key


@jax.jit  # without it, each operation would be a program of its own
def _key(seed: Any, path_hash: Any) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.key(seed), path_hash)


def layer_parameters(base: nnx.Module) -> dict[str, Array]:
    """Returns the parameters of the layers of `base`, by path. Their first axis is that of the layers."""
    return {path: value for path, value in parameters(base).items() if "/layers/" in path}


OUTPUTS = ("head/kernel", "head/bias")  # the parameters of a head that have an axis of outputs


def init_head(base: nnx.Module, seed: int, *, std: float = 0.02) -> dict[str, Padded]:
    """Draws a new head, which every method trains: kernel N(0, std²), bias 0. All methods draw the same head."""
    head: dict[str, Padded] = {}
    for path, value in parameters(base).items():
        if path.startswith("head/"):
            wide = jnp.promote_types(value.dtype, jnp.float32)
            fresh: Any = np.zeros(value.shape, wide)
            if path.endswith("kernel"):
                fresh = std * jax.random.normal(key_of(seed, path), value.shape, wide)
            head[path] = OutputReplacement(fresh) if path in OUTPUTS else Replacement(fresh)
    return head
