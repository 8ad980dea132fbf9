"""Prefix-tuning (Li & Liang, arXiv 2101.00190): trained keys and values before those of every text.

The keys and values train directly, as in PEFT's ``PrefixTuningConfig`` without projection; the paper's MLP before them
is not here. All tokens attend to the prefix, in layers with a sliding window too, and the text's positions start after
it. At step 0 the model is therefore not the base.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import Padded, Prefix, Visibility
from lora_jax.config import RunConfig
from lora_jax.config.methods import PrefixSettings
from lora_jax.delta import Delta, count
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head, key_of
from lora_jax.methods.positions import check_positions
from lora_jax.targets import layer_mask

PATH = "backbone/layers/attn/prefix"


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Method):
    """Trains a prefix of keys and values, and a new head. All of its settings are data."""

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if `base` has no such layers or too few positions, or needs the position of every key."""
        if not hasattr(_backbone(base).layers.attn, "prefix"):
            raise UserError(
                "method=prefix: a prefix has no position, and DeBERTa's attention needs the distance of every key; "
                "use method=prompt, or another model"
            )
        prefixed_layers(base, run)
        check_positions(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Draws keys and values from N(0, init_std²), with zeros in layers without a prefix, and a head.

        Returns:
          ``params`` has a `Prefix` with ``[layers, length, kv_heads, d_head]``, and ``constants`` its `Visibility`.

        Raises:
          UserError: `base` does not have the layers.
        """
        settings, config = _settings(run), _backbone(base).config
        layers = prefixed_layers(base, run)
        shape = (settings.length, config.kv_heads, config.d_head)

        def draw(name: str) -> Any:
            key = key_of(run.initial_seed, f"{PATH}/{name}")
            # A layer's numbers depend on its own index, so a prefix in fewer layers changes nothing in the others.
            keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(np.arange(len(layers)))
            drawn = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.zeros(()).dtype))(keys)
            return jnp.where(layers[:, None, None, None], settings.init_std * drawn, 0)

        prefix = Prefix(draw("k"), draw("v"))
        visible = np.broadcast_to(layers[:, None], (len(layers), settings.length))
        head = init_head(base, run.initial_seed)
        params: dict[str, Padded] = {PATH: prefix, **head}
        trainable = int(layers.sum()) * 2 * settings.length * config.kv_heads * config.d_head
        return AdapterInit(params, {PATH: Visibility(visible)}, trainable + count(head))  # type: ignore[arg-type]

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the prefix, with which of its keys are visible, and the head."""
        prefix = params[PATH]
        return {**params, PATH: Prefix(prefix.k, prefix.v, constants[PATH].visible)}


def prefixed_layers(base: nnx.Module, run: RunConfig) -> np.ndarray:
    """Returns a mask of the layers that have a prefix. Raises UserError as `targets.layer_mask`."""
    layers = jax.tree.leaves(_backbone(base).layers)[0].shape[0]
    return layer_mask(_settings(run).layers, layers, key="method.layers")


def _settings(run: RunConfig) -> PrefixSettings:
    assert isinstance(run.method, PrefixSettings)
    return run.method


def _backbone(base: Any) -> Any:
    return base.backbone
