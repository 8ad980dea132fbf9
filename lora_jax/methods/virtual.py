"""Prompt tuning (Lester et al., arXiv 2104.08691); PreEmbed and PreLayer (Hu et al., arXiv 2106.09685, section 5.1).

All three insert virtual tokens: a prefix of l_p before the text and, in PreEmbed and PreLayer, an infix of l_i after
its prompt. In a text to classify, the whole text is the prompt. Their embeddings train: d_model · (l_p + l_i) numbers.

PreLayer also trains activations between the layers, which replace those computed at the virtual tokens. The paper
counts L · d_model · (l_p + l_i), so L sets of activations train: the input of the first layer, which are the
embeddings, and the results of all layers but the last. Those of the last layer are computed: no layer attends to them,
and the infix's last token must predict what follows.

At step 0 the model is not the base, because all tokens attend to the virtual ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from lora_jax.adapters import Activity, Padded, VirtualRows, VirtualStates, VirtualTokens
from lora_jax.config import RunConfig
from lora_jax.config.methods import VirtualTokenSettings
from lora_jax.delta import SLOT, Delta, count, parameters
from lora_jax.errors import UserError
from lora_jax.methods.method import AdapterInit, Method, init_head, key_of
from lora_jax.methods.positions import check_positions

TOKENS = "backbone/virtual"
EMBEDDINGS = ("backbone/embed/word", "backbone/embed")  # of token ids, in an encoder and in a decoder
STATES = f"backbone/layers/after_block/{SLOT}"


@dataclasses.dataclass(frozen=True)
class VirtualTokenTuning(Method):
    """Trains virtual tokens and a new head. All settings are data, except whether activations train (PreLayer)."""

    states: bool  # whether the activations after the layers train too

    @classmethod
    def from_settings(cls, settings: VirtualTokenSettings) -> "VirtualTokenTuning":
        """Returns the method that `settings` name."""
        return cls(settings.trains_activations)

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError if `base` does not read tokens, or has too few positions for the virtual ones."""
        if not hasattr(_backbone(base), "virtual"):
            raise UserError(f"method={run.method.name}: this model reads pixels, not tokens; use method=prefix")
        check_positions(base, run)

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Draws the embeddings of the virtual tokens, and for PreLayer their activations, and a head.

        Both start as embeddings of random tokens of the vocabulary, or as normal numbers with the standard deviation
        of the embeddings.

        Returns:
          ``params`` has `VirtualRows` in the embedding's slot and, for PreLayer, `VirtualStates` after the blocks, zero
          after the last. ``constants`` has the `VirtualTokens`, and the `Activity` of the states.
        """
        prefix, infix = _settings(run).virtual_tokens
        tokens = prefix + infix
        weights = parameters(base)
        embedding = next(path for path in EMBEDDINGS if f"{path}/embedding" in weights)
        table = weights[f"{embedding}/embedding"]

        def draw(path: str, layer: int = 0) -> Array:
            key = jax.random.fold_in(key_of(run.initial_seed, path), layer)
            return draw_rows(key, table, tokens, _settings(run).init)

        slot = f"{embedding}/{SLOT}"
        params: dict[str, Padded] = {slot: VirtualRows(draw(slot))}
        number = np.arange(tokens)
        masks = VirtualTokens(number < prefix, number >= prefix)  # type: ignore[arg-type]
        constants: dict[str, Padded] = {TOKENS: masks}
        sets = 1
        if self.states:
            sets = jax.tree.leaves(_backbone(base).layers)[0].shape[0]
            drawn = [draw(STATES, layer) for layer in range(sets)]
            active = np.arange(sets) < sets - 1
            params[STATES] = VirtualStates(jnp.where(active[:, None, None], jnp.stack(drawn), 0))
            constants[STATES] = Activity(active)
        head = init_head(base, run.initial_seed)
        return AdapterInit(params | head, constants, sets * tokens * table.shape[-1] + count(head))

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns the virtual tokens, their embeddings and activations, and the head."""
        delta = {**params, TOKENS: constants[TOKENS]}
        if self.states:
            delta[STATES] = VirtualStates(params[STATES].states, constants[STATES].active)
        return delta


def draw_rows(
    key: PRNGKeyArray, table: Float[Array, "vocab d_model"], count: int, init: str
) -> Float[Array, "count d_model"]:
    """Draws embeddings: rows of `table` ("vocabulary"), or normal numbers of its standard deviation ("normal")."""
    wide = jnp.zeros(()).dtype
    if init == "vocabulary":
        return jnp.take(table, jax.random.randint(key, (count,), 0, len(table)), axis=0).astype(wide)
    return table.astype(wide).std() * jax.random.normal(key, (count, table.shape[-1]), wide)


def _settings(run: RunConfig) -> VirtualTokenSettings:
    assert isinstance(run.method, VirtualTokenSettings)
    return run.method


def _backbone(base: Any) -> Any:
    return base.backbone
