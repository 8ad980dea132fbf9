"""Slots of blocks and prefixes of attention: empty ones change nothing, and adapters act where the slot says."""

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.families import CONFIGS, inputs_of, meaningful, model_of
from helpers.slow import sometimes
from jaxtyping import Array

from lora_jax.adapters import Replacement
from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES
from lora_jax.models.options import ComputeOptions
from lora_jax.models.slots import BlockSlot, SublayerSlot

SLOTS = ("after_attn", "after_mlp", "after_block")
POST_NORM = ("bert", "roberta", "deberta")
WITH_PREFIX = [name for name in CONFIGS if name != "deberta"]
DECODERS = [name for name in CONFIGS if FAMILIES[CONFIGS[name][0]].causal]
LENGTH = 3  # of a prefix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scale:
    """An adapter that multiplies its input by a factor. 1 is its neutral element."""

    factor: Array  # [layers]
    neutral: ClassVar = (1.0, 1.0)

    def __call__(self, x, key, **_):
        return x * self.factor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
    """An adapter that adds noise to its input wherever it gets a key."""

    size: Array  # [layers]
    neutral: ClassVar = (0.0, 0.0)

    def __call__(self, x, key, **_):
        return x if key is None else x + self.size * jax.random.normal(key, x.shape, x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Keys and values that are the same for every text."""

    k: Array  # [layers, length, kv_heads, d_head]
    v: Array  # [layers, length, kv_heads, d_head]
    visible: Array  # [layers, length]

    def extend(self, k, v):
        def prepend(prefix, x):
            return jnp.concatenate([jnp.broadcast_to(prefix.astype(x.dtype), (len(x), *prefix.shape)), x], axis=1)

        return prepend(self.k, k), prepend(self.v, v), self.visible


def with_adapters(model, adapters: dict):
    """Returns new module objects around the same arrays, with each adapter at its path."""
    model = jax.tree.map(lambda leaf: leaf, model)
    for path, value in adapters.items():
        *owners, name = path.split("/")
        setattr(functools.reduce(getattr, owners, model), name, nnx.data(value))
    return model


def with_slots(name: str, adapter=Scale, **values):
    """Returns a model with an adapter in every slot, neutral where `values` has none: one program for all tests."""
    adapters = {slot: adapter(jnp.asarray(values.get(slot, adapter.neutral), jnp.float32)) for slot in SLOTS}
    return with_adapters(model_of(name), {f"backbone/layers/{slot}/adapter": x for slot, x in adapters.items()})


def random_prefix(name: str, visible, length: int = LENGTH) -> Prefix:
    config = model_of(name).backbone.config
    kv_heads = getattr(config, "kv_heads", None) or config.num_attention_heads
    d_head = getattr(config, "d_head", None) or config.hidden_size // config.num_attention_heads
    rng = np.random.default_rng(2)
    k, v = (jnp.asarray(rng.normal(size=(2, LENGTH, kv_heads, d_head)), jnp.float32) for _ in range(2))
    return Prefix(k[:, :length], v[:, :length], jnp.broadcast_to(jnp.asarray(visible, bool), (2, length)))


def with_prefix(name: str, prefix: Prefix):
    return with_adapters(model_of(name), {"backbone/layers/attn/prefix": prefix})


@functools.cache
def forward(name: str):
    """Returns ``(model, key) -> outputs``. With a key, dropout is on."""
    tokens, mask = inputs_of(name)
    return jax.jit(lambda model, key: model(tokens, mask, dropout_rate=0.3, key=key))


def outputs(name: str, model, key=None):
    return np.asarray(meaningful(name, forward(name)(model, key), inputs_of(name)[1]))


@functools.cache
def base_outputs(name: str):
    return outputs(name, model_of(name))


def assert_differ(one, other):
    assert np.abs(one - other).max() > 1e-3 * np.abs(other).max()


def scaled_parameters(model, suffixes: tuple[str, ...], factors):
    """Returns `model` with those parameters of its blocks multiplied by a factor per layer."""
    factors = jnp.asarray(factors, jnp.float32)
    return graft(
        model,
        {
            path: Replacement(value * factors.reshape(-1, *[1] * (value.ndim - 1)))
            for path, value in parameters(model).items()
            if path.startswith("backbone/layers/") and path.endswith(suffixes)
        },
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_slots_have_no_parameters_and_add_no_operation(name, monkeypatch):
    model, inputs = model_of(name), inputs_of(name)
    assert not [path for path in parameters(model) if "after_" in path or "prefix" in path]
    program = str(jax.make_jaxpr(lambda model: model(*inputs))(model))
    for slot in (BlockSlot, SublayerSlot):
        monkeypatch.setattr(slot, "__call__", lambda self, x, key=None, **_: x)
    assert str(jax.make_jaxpr(lambda model: model(*inputs))(model)) == program


@pytest.mark.parametrize("name", CONFIGS)
def test_a_neutral_adapter_changes_nothing(name):
    np.testing.assert_allclose(outputs(name, with_slots(name)), base_outputs(name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slot, layer", [("after_attn", "attn/o"), ("after_mlp", "mlp/down")])
@pytest.mark.parametrize("name", CONFIGS)
def test_scaling_after_attention_or_mlp_equals_scaling_its_last_layer(name, slot, layer):
    factors = [0.5, -1.5]
    adapted = outputs(name, with_slots(name, **{slot: factors}))
    expected = scaled_parameters(model_of(name), (f"{layer}/kernel", f"{layer}/bias"), factors)
    np.testing.assert_allclose(adapted, outputs(name, expected), rtol=1e-5, atol=1e-5)
    assert_differ(adapted, base_outputs(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_scaling_after_the_block_scales_its_result(name):
    """In a post-norm block that is the last norm's output. In others, -1 flips the sign before the final norm."""
    factors = [0.5, -1.5] if name in POST_NORM else [1.0, -1.0]
    adapted = outputs(name, with_slots(name, after_block=factors))
    if name in POST_NORM:
        expected = scaled_parameters(model_of(name), ("mlp_norm/scale", "mlp_norm/bias"), factors)
    else:
        norm = model_of(name).backbone.norm
        negated = -norm.scale[...] - 2 * getattr(norm, "offset", 0.0)  # of offset + scale
        expected = graft(model_of(name), {"backbone/norm/scale": Replacement(negated)})
    np.testing.assert_allclose(adapted, outputs(name, expected), rtol=1e-5, atol=1e-5)
    assert_differ(adapted, base_outputs(name))


@pytest.mark.parametrize("name", sometimes(["bert", "vit", "gpt_neox", "llama", "gemma2"], "bert"))
def test_slots_get_keys_of_their_own_and_leave_other_dropout_as_it_is(name):
    key = jax.random.key(7)
    expected = outputs(name, model_of(name), key)
    np.testing.assert_allclose(outputs(name, with_slots(name, Noise), key), expected, rtol=1e-5, atol=1e-5)
    noisy = [outputs(name, with_slots(name, Noise, **{slot: [0.0, 1.0]}), key) for slot in SLOTS]
    for one, other in itertools.combinations([expected, *noisy], 2):
        assert_differ(one, other)
    np.testing.assert_array_equal(outputs(name, with_slots(name, Noise, after_mlp=[1.0, 1.0])), base_outputs(name))


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_prefix_acts_where_it_is_visible(name):
    hidden = outputs(name, with_prefix(name, random_prefix(name, [False] * LENGTH)))
    np.testing.assert_allclose(hidden, base_outputs(name), rtol=1e-6, atol=1e-6)
    visible = outputs(name, with_prefix(name, random_prefix(name, [True] * LENGTH)))
    assert_differ(visible, base_outputs(name))
    padded = outputs(name, with_prefix(name, random_prefix(name, [True, True, False])))
    shorter = outputs(name, with_prefix(name, random_prefix(name, [True, True], length=2)))
    np.testing.assert_allclose(padded, shorter, rtol=1e-5, atol=1e-5)
    assert_differ(shorter, visible)


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_with_a_cache_and_a_prefix_equals_the_full_forward_pass(name):
    model = with_prefix(name, random_prefix(name, [True, False, True]))
    tokens, mask = inputs_of(name)
    mask = mask.copy()
    mask[:, 9:] = True  # generated tokens
    full = np.asarray(jax.jit(lambda model: model(tokens, mask))(model))
    step = jax.jit(lambda model, tokens, mask, cache: model(tokens, mask, cache=cache))
    cache, pieces = model.backbone.empty_cache(4, 12), []
    for columns in (slice(0, 9), slice(9, 10), slice(10, 11), slice(11, 12)):
        logits, cache = step(model, tokens[:, columns], mask[:, columns], cache)
        pieces.append(logits)
    assert int(cache.length) == 12 and cache.k.shape[2] == 12
    np.testing.assert_allclose(np.concatenate(pieces, 1)[mask], full[mask], atol=2e-5 * np.abs(full).max())


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_a_prefix_is_an_obstacle_to_cudnn(name):
    model = with_prefix(name, random_prefix(name, [True] * LENGTH))
    with pytest.raises(UserError, match=r"cudnn is not available: .*a prefix extends the keys of attention"):
        jax.eval_shape(lambda: model(*inputs_of(name), options=ComputeOptions(attention="cudnn")))


def test_deberta_has_no_slot_for_a_prefix():
    with pytest.raises(KeyError, match="no parameter or slot at 'backbone/layers/attn/prefix'"):
        graft(model_of("deberta"), {"backbone/layers/attn/prefix": random_prefix("deberta", [True] * LENGTH)})
