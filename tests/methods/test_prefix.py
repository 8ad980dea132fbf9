"""Prefix-tuning: what a prefix starts from, that hidden keys are no keys, positions, packs, files and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, inputs_of, meaningful, model_of
from helpers.method_cases import SHORT
from helpers.packed import assert_packed_equals_alone

from lora_jax.adapters import Prefix
from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.generate import Decoding, generate
from lora_jax.generate.forward import align_right
from lora_jax.methods.prefix import PATH, PrefixTuning
from lora_jax.models import FAMILIES

STEPS = 20
HEAD = 32 * 7 + 7
DECODERS = [name for name in CONFIGS if FAMILIES[CONFIGS[name][0]].causal]


def start_of(base, configure, **settings):
    return PrefixTuning().init(base, configure("prefix", **settings))


def adapted(base, start):
    return graft(base, PrefixTuning().materialise(start.params, start.constants))


@pytest.mark.parametrize("length, layers, count", [(16, ":", 3), (1, "1:", 2), (5, "-1", 1)])
def test_as_many_numbers_train_as_layers_lengths_and_heads_say(base, configure, length, layers, count):
    """2 · L · length · kv_heads · d_head, and the head."""
    run = configure("prefix", method__length=length, method__layers=layers)
    start = PrefixTuning().init(base, run)
    assert start.trainable == count * 2 * length * 32 + HEAD
    assert jax.eval_shape(lambda: PrefixTuning().init(base, run)).trainable == start.trainable
    assert start.params[PATH].k.shape == (3, length, 4, 8)
    assert np.asarray(start.constants[PATH].visible).all(1).sum() == count


def test_keys_and_values_are_normal_and_a_layers_own(base, configure):
    whole = start_of(base, configure, method__length=64, method__init_std=0.5).params[PATH]
    for array in (whole.k, whole.v):
        assert np.isclose(np.asarray(array).std(), 0.5, rtol=0.05)
    assert not np.array_equal(whole.k, whole.v)
    part = start_of(base, configure, method__length=64, method__init_std=0.5, method__layers="1:").params[PATH]
    np.testing.assert_array_equal(part.k[1:], whole.k[1:])
    assert not part.k[0].any() and not part.v[0].any()


def test_the_model_is_not_the_base_and_hidden_keys_make_it_the_base(base, configure):
    tokens = np.arange(18).reshape(2, 9) % 101
    expected = base(tokens, tokens >= 0)
    start = start_of(base, configure, method__init_std=1.0)
    delta = PrefixTuning().materialise(start.params, start.constants)
    hidden = {PATH: delta[PATH].neutral()}
    np.testing.assert_allclose(graft(base, hidden)(tokens, tokens >= 0), expected, atol=1e-6)
    visible = graft(base, {PATH: delta[PATH]})(tokens, tokens >= 0)
    assert np.abs(visible - expected).max() > 1e-3


def test_only_the_delta_trains(base, pack_of, configure):
    before = {path: np.asarray(value) for path, value in parameters(base).items()}
    pack = pack_of(base, [configure("prefix", lr=1e-2, batch=8, steps=3, method__length=3, method__layers="1:")])
    pack.train(base, 3)
    for path, value in parameters(base).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    prefix, start = pack.params(0)[PATH], pack.program.method.init(base, configure("prefix", method__length=3)).params
    assert not prefix.k[0].any() and not prefix.v[0].any()
    assert np.abs(prefix.k[1:] - start[PATH].k[1:]).min(axis=(-1, -2)).max() > 0
    assert np.abs(prefix.v[1:] - start[PATH].v[1:]).max() > 1e-2


@pytest.mark.slow
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure):
    runs = [
        {"method__length": 1, "lr": 1e-2, "seed": 3, "optim__weight_decay": 0.3},
        {"method__length": 16, "method__layers": "0:2", "lr": 3e-3, "seed": 1, "method__init_std": 1.0},
        {"method__length": 5, "method__layers": "-1", "lr": 5e-3, "seed": 2, "optim__clip_norm": 0.1},
    ]
    runs = [configure("prefix", **run, steps=STEPS, batch=8, dtype="float64") for run in runs]
    assert_packed_equals_alone(base, pack_of, runs, steps=STEPS)


def test_with_dropout_only_runs_of_one_length_share_a_program(configure):
    keys = [configure("prefix", method__length=n, dropout=rate).program_key() for n in (4, 8) for rate in (0.0, 0.1)]
    assert keys[0] == keys[2] and keys[1] != keys[3]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "deberta"])
def test_every_family_computes_with_a_prefix_and_pads_it_exactly(name, configure):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    run = configure("prefix", method__length=3, method__init_std=1.0, **SHORT)
    PrefixTuning().validate(model, run)
    start = PrefixTuning().init(model, run)
    prefix = PrefixTuning().materialise(start.params, start.constants)[PATH]
    forward = jax.jit(lambda model: model(tokens, mask))
    short, padded, base = (
        np.asarray(meaningful(name, forward(graft(model, delta)), mask))
        for delta in ({PATH: prefix}, {PATH: prefix.resize(5)}, {})
    )
    np.testing.assert_allclose(padded, short, atol=1e-5 * np.abs(short).max())
    assert np.abs(short - base).max() > 1e-3 * np.abs(base).max()


@pytest.mark.parametrize("name", ["bert", "roberta", *DECODERS])
def test_positions_start_after_the_visible_keys_of_the_longest_layer(name, configure, monkeypatch):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    start = PrefixTuning().init(model, configure("prefix", method__length=3, method__layers="1:"))
    prefix = PrefixTuning().materialise(start.params, start.constants)[PATH]
    two = Prefix(prefix.k, prefix.v, jnp.asarray(prefix.visible).at[:, 1].set(False))
    backbone = graft(model, {PATH: two}).backbone
    if name in DECODERS:
        owner, method, argument, expected = type(backbone), "embed_inputs", 1, np.maximum(mask.cumsum(1) - 1, 0)
    else:
        owner, method, argument, expected = type(backbone.embed), "__call__", 2, backbone.positions(jnp.asarray(mask))
    original, positions = getattr(owner, method), []
    monkeypatch.setattr(owner, method, lambda self, *given: positions.append(given[argument]) or original(self, *given))
    backbone(tokens, mask)
    np.testing.assert_array_equal(positions[-1], expected + 2)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_decoding_is_the_argmax_of_the_full_pass_in_a_pack_too(name, configure):
    model, (tokens, mask) = model_of(name), inputs_of(name, tokens=8)
    runs = [
        configure("prefix", method__length=length, method__layers=layers, method__init_std=1.0, seed=length, **SHORT)
        for length, layers in ((1, ":"), (4, "1:"))
    ]
    inits = [PrefixTuning().init(model, run) for run in runs]
    deltas = [PrefixTuning().materialise(init.params, init.constants) for init in inits]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *({PATH: delta[PATH].resize(4)} for delta in deltas))
    decoding = Decoding(4)
    packed = jax.jit(jax.vmap(lambda delta: generate(graft(model, delta), tokens, mask, decoding)))(stacked)
    prompts, filled = align_right(jnp.asarray(tokens), jnp.asarray(mask))
    for delta, answers in zip(deltas, packed, strict=True):
        whole = jnp.concatenate([prompts, answers], axis=1)
        full = jnp.concatenate([filled, jnp.ones(answers.shape, bool)], axis=1)
        logits = jax.jit(lambda model, whole, full: model(whole, full))(graft(model, delta), whole, full)
        np.testing.assert_array_equal(logits[:, 7:-1].argmax(-1), answers)


def test_a_prefix_of_a_file_has_all_keys_visible_unless_it_says_otherwise(base, configure):
    start = start_of(base, configure, method__length=3, method__init_std=1.0)
    tokens = np.arange(18).reshape(2, 9) % 101
    bare = graft(base, {PATH: start.params[PATH]})(tokens, tokens >= 0)
    delta = PrefixTuning().materialise(start.params, start.constants)
    np.testing.assert_array_equal(bare, graft(base, {PATH: delta[PATH]})(tokens, tokens >= 0))


def test_what_cannot_be_is_refused(base, configure):
    start = start_of(base, configure)
    with pytest.raises(UserError, match=r"method.layers='3:': selects none of the 3 layers"):
        PrefixTuning().validate(base, configure("prefix", method__layers="3:"))
    with pytest.raises(UserError, match=r"method.length=0: must be greater than 0"):
        configure("prefix", method__length=0)
    long = configure("prefix", method__length=500, task__buckets=(16, 32))
    with pytest.raises(UserError, match=r"method.length=500: the longest bucket .* is 32, .* 512; must be at most 480"):
        PrefixTuning().validate(base, long)
    with pytest.raises(UserError, match="k has the shape"):
        graft(model_of("llama"), {PATH: start.params[PATH]})


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_the_positions_of_the_longest_prefix_of_a_pack_are_counted(name, configure):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    start = PrefixTuning().init(model, configure("prefix", method__length=9))
    with pytest.raises(UserError, match="texts of 21 tokens"):
        jax.eval_shape(lambda: adapted(model, start)(tokens, mask))
    if name == "gpt2":
        with pytest.raises(UserError, match="21 tokens of prompt and answer are more than GPT-2's n_positions=20"):
            adapted(model, start).backbone.empty_cache(4, 12)
