"""Bottleneck adapters: small two-layer networks in the slots of blocks, the base frozen.

Four placements, under the LoRA paper's names (Hu et al., arXiv 2106.09685, section 5.1):

    adapter_h   Houlsby et al., arXiv 1902.00751: after attention and after the MLP, before the residual
    adapter_p   Pfeiffer et al., arXiv 2005.00247: after the MLP, computed from the stream after residual and norm
    adapter_l   Lin et al., arXiv 2004.03829: on a block's result, with a layer norm of its own
    adapter_d   Rücklé et al., arXiv 2010.11918 (AdapterDrop): as adapter_p, without the first layers

The first two are adapter-hub's `DoubleSeqBnConfig`, but with GELU, and its `SeqBnConfig`. There the base's dropout
comes before the adapter, here after it.

``method.init=zero`` draws W_down from N(0, 0.02²), as adapter-hub does (``init_weights="bert"``), and starts W_up at
zero, so that the model starts as the base. ``normal`` draws both from N(0, 0.01²), truncated at two standard
deviations, as Houlsby et al. (section 3.6) and adapter-hub (``init_weights="houlsby"``) do. Biases start at zero.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from lora_jax.adapters import Activity, Bottleneck, BottleneckBiases, BottleneckKernels, Padded, Replacement
from lora_jax.adapters.bottleneck import Reads
from lora_jax.config import RunConfig
from lora_jax.config.methods import BottleneckSettings
from lora_jax.delta import SLOT, Delta, count
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head, key_of
from lora_jax.targets import Site, layer_mask, sites

BLOCKS = "backbone/layers"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the adapters of a block stand, what they read, and whether they have a layer norm."""

    slots: tuple[str, ...]
    reads: Reads = "value"
    norm: bool = False


PLACEMENTS = {
    "adapter_h": Placement(("after_attn", "after_mlp")),
    "adapter_p": Placement(("after_mlp",), reads="stream"),
    "adapter_l": Placement(("after_block",), norm=True),
    "adapter_d": Placement(("after_mlp",), reads="stream"),
}


@dataclasses.dataclass(frozen=True)
class BottleneckAdapters(Method):
    """Trains a bottleneck adapter in one or two slots of each adapted layer, and a new head."""

    placement: Placement
    activation: str

    @classmethod
    def from_settings(cls, settings: BottleneckSettings) -> Self:
        """Returns the method. Placement and activation are compiled in."""
        return cls(PLACEMENTS[settings.name], settings.activation)

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if `base` has no layer that should get an adapter."""
        adapted_layers(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Draws an adapter for each slot of the adapted layers, and a head. Other layers have zeros.

        Returns:
          ``params["<slot>/adapter"]`` is ``BottleneckKernels(down=[layers, d_model, r], up=[layers, r, d_model])`` and
          ``params["<slot>/adapter/bias"]`` has its biases. A layer norm is at ``<slot>/adapter/norm/scale`` and
          ``<slot>/adapter/norm/bias``. ``constants["<slot>/adapter"]`` is the mask of adapted layers.

        Raises:
          UserError: as `validate`.
        """
        settings, active = _settings(run), adapted_layers(base, run)
        width, bottleneck = _block_output(base).d_out, settings.bottleneck
        params: dict[str, Padded] = {}
        constants: dict[str, Padded] = {}
        for slot in self.placement.slots:
            path = f"{BLOCKS}/{slot}/{SLOT}"
            kernels = _draw_kernels(key_of(run.initial_seed, path), len(active), width, bottleneck, settings.init)
            params[path] = jax.tree.map(lambda kernel: jnp.where(active[:, None, None], kernel, 0), kernels)
            params[f"{path}/bias"] = BottleneckBiases(_zeros(len(active), bottleneck), _zeros(len(active), width))
            if self.placement.norm:
                params[f"{path}/norm/scale"] = Replacement(_zeros(len(active), width) + active[:, None])
                params[f"{path}/norm/bias"] = Replacement(_zeros(len(active), width))
            constants[path] = Activity(active)  # type: ignore[arg-type]
        trainable = count(params) // len(active) * int(active.sum())
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, trainable + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the adapters, put together from their parts, and the head."""

        def assemble(path: str) -> Bottleneck:
            kernels, biases = params[path], params[f"{path}/bias"]
            norm = self.placement.norm
            return Bottleneck(
                down=kernels.down,
                down_bias=biases.down,
                up=kernels.up,
                up_bias=biases.up,
                active=constants[path].active,
                scale=params[f"{path}/norm/scale"].value if norm else None,
                bias=params[f"{path}/norm/bias"].value if norm else None,
                activation=self.activation,
                reads=self.placement.reads,
            )

        head = {path: value for path, value in params.items() if not path.startswith(f"{BLOCKS}/")}
        return {path: assemble(path) for path in constants} | head


def adapted_layers(base: nnx.Module, run: RunConfig) -> np.ndarray:
    """Returns a mask of the layers that get adapters, shape ``[layers]``.

    Raises:
      UserError: ``method.layers`` is malformed, or it and ``method.drop`` leave no layer.
    """
    settings = _settings(run)
    layers = _block_output(base).layers or 1
    active = layer_mask(settings.layers, layers, key="method.layers")
    first = settings.first_layer
    if first >= layers:
        raise UserError(f"method.drop={first}: must be less than {layers}, the layers of this model")
    active &= np.arange(layers) >= first
    if not active.any():
        raise UserError(
            f"method.layers={settings.layers!r}: method.drop={first} drops all of these layers; "
            f"must select a layer from {first} on"
        )
    return active


def _settings(run: RunConfig) -> BottleneckSettings:
    assert isinstance(run.method, BottleneckSettings)
    return run.method


def _block_output(base: nnx.Module) -> Site:
    return sites(base)[f"{BLOCKS}/attn/o"]


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _draw_kernels(key: PRNGKeyArray, layers: int, width: int, bottleneck: int, init: str) -> BottleneckKernels:
    """Draws W_down and W_up for all layers. A layer's numbers depend on its own index, whichever others are adapted."""

    def draw(layer: Array) -> BottleneckKernels:
        down_key, up_key = jax.random.split(jax.random.fold_in(key, layer))
        if init == "zero":
            down = 0.02 * jax.random.normal(down_key, (width, bottleneck), _wide())
            return BottleneckKernels(down, _zeros(bottleneck, width))
        down = 0.01 * jax.random.truncated_normal(down_key, -2.0, 2.0, (width, bottleneck), _wide())
        up = 0.01 * jax.random.truncated_normal(up_key, -2.0, 2.0, (bottleneck, width), _wide())
        return BottleneckKernels(down, up)

    return jax.vmap(draw)(jnp.arange(layers))


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, _wide())


def _wide() -> Any:
    return jnp.zeros(()).dtype  # float32, or float64 where JAX_ENABLE_X64 asks for it
