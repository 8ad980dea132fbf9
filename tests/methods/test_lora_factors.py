"""LoRA's factors: their scales, rates (LoRA+), dropout, a frozen A (LoRA-FA), a shared A, and an A per head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import model_of
from helpers.lora_runs import ATTN, HEAD, MLP, Q, V, delta_of, init
from helpers.method_runs import moved
from helpers.named_models import NAMED

from lora_jax.adapters import LowRank
from lora_jax.delta import count, graft
from lora_jax.errors import UserError
from lora_jax.methods.lora import Lora
from lora_jax.models import FAMILIES
from lora_jax.models.options import ComputeOptions
from lora_jax.train.initial import initial_shapes
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.step import outputs_of, program_of
from lora_jax.weights.heads import fit

# ---- scaling and alpha


@pytest.mark.parametrize(
    "alpha, scaling, expected",
    [
        (16, "sqrt_rank", 16 * 3),
        ("16sqrt(r)", "lora", 16 / 3),
        ("sqrt(r)", "constant", 3),
        ("0.5sqrt(r)", "rslora", 0.5),
        ("sqrt(r)", "sqrt_rank", 9),
    ],
)
def test_scales_of_rank_9(base, configure, alpha, scaling, expected):
    start = init(base, configure(rank=9, targets="q", alpha=alpha, method__scaling=scaling))
    np.testing.assert_allclose(start.constants[Q].scale, [expected] * 3, rtol=1e-6)


@pytest.mark.parametrize("alpha", ["0sqrt(r)", "sqrt", "2sqrt(q)", "sqrt(r)2", "-1sqrt(r)", "1e2sqrt(r)"])
def test_another_multiple_of_the_root_is_refused(configure, alpha):
    with pytest.raises(UserError, match=r"multiple of the rank such as '2r', or of its square root such as '16sqrt"):
        configure(alpha=alpha)


# ---- LoRA+


def test_b_learns_faster_by_the_ratio(base, pack_of, configure):
    """Adam's first step is the learning rate for each number, wherever the gradient is clearly not 0."""
    common = {"rank": 4, "targets": "q", "lr": 1e-3, "steps": 10, "batch": 8, "optim__warmup": 0.0}
    runs = [configure(**common, method__lr_ratio=ratio) for ratio in (1.0, 8.0)]
    pack = pack_of(base, runs).train(base, 1)
    b = [np.abs(pack.params(i)[Q].b).max() for i in range(2)]
    np.testing.assert_allclose(b, [1e-3, 8e-3], rtol=1e-3)
    for i in range(2):
        start = pack.inits[i].params
        assert np.abs(pack.params(i)["head/bias"].value).max() < 1.01e-3
        assert np.abs(pack.params(i)[Q].a - start[Q].a).max() < 1.01e-3


def test_an_embeddings_pair_has_no_ratio(base, configure):
    start = init(base, configure(rank=2, targets="embed+q", method__lr_ratio=16.0))
    assert start.constants["backbone/embed/word/adapter"].lr_ratio == 1
    np.testing.assert_array_equal(start.constants[Q].lr_ratio, [16] * 3)


def test_an_adapter_from_before_the_ratio_trains_at_one_rate(base, configure):
    start = init(base, configure(rank=2, targets="q"))
    old = {Q: type(start.constants[Q])(start.constants[Q].scale)}
    assert all(factor == 1 for factor in jax.tree.leaves(Lora().learning_rate_multipliers(start.params, old)))


# ---- LoRA-FA


def test_lora_fa_trains_b_alone(base, configure, pack_of):
    plain, frozen = (configure(rank=4, targets="qv", batch=8, steps=9, method__freeze_a=a) for a in (False, True))
    start = init(base, frozen)
    assert start.trainable == 2 * 3 * 4 * 32 + HEAD == sum(leaf.size for leaf in jax.tree.leaves(start.params))
    np.testing.assert_array_equal(start.constants[f"{ATTN}/q/a"].a, init(base, plain).params[Q].a)
    pack = pack_of(base, [frozen]).train(base, 3)
    delta = pack.materialised(0)
    np.testing.assert_array_equal(delta[Q].a, start.constants[f"{ATTN}/q/a"].a)
    assert np.abs(delta[Q].b).max() > 0


# ---- LoRA Dropout


def test_factor_dropout_masks_inputs_and_outputs_alike_for_all_tokens():
    rng = np.random.default_rng(0)
    x, w, a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 5, 64), (64, 48), (64, 3), (3, 48)))
    pair = LowRank(a, b, factor_dropout=jnp.float32(0.25))
    masked = pair.masked(jax.random.key(1))
    rows, columns = np.asarray(masked.a != 0), np.asarray(masked.b != 0)
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    assert 0.55 < rows.mean() < 0.95 and 0.55 < columns.mean() < 0.95
    np.testing.assert_array_equal(masked.a[rows[:, 0]], a[rows[:, 0]])  # is not rescaled
    expected = x @ (w + masked.a @ masked.b)
    np.testing.assert_allclose(pair(x, w, jax.random.key(1)), expected, atol=1e-4)
    np.testing.assert_allclose(pair(x, w, None), x @ (w + a @ b), atol=1e-4)
    other = pair.masked(jax.random.key(2))
    assert (other.a != masked.a).any()


@pytest.mark.slow
def test_an_ensemble_is_the_mean_over_masks_and_always_the_same(base, configure, pack_of):
    runs = [configure(rank=4, batch=8, method__factor_dropout=0.4, method__ensemble=size) for size in (1, 3)]
    pack = pack_of(base, runs[1:])
    params, constants = moved(pack.inits[0].params), pack.inits[0].constants
    batch = jax.tree.map(lambda leaf: leaf[0], pack.example())
    single, several = (
        jax.jit(lambda run=run: outputs_of(program_of(run), base, params, constants, batch))() for run in runs
    )
    model = graft(base, delta_of(runs[1], params, constants))
    keys = jax.random.split(jax.random.key(0), 3)
    each = [OBJECTIVES["classification"].outputs(model, batch, options=ComputeOptions(), key=key) for key in keys]
    np.testing.assert_allclose(several, np.mean(each, 0), atol=1e-4)
    assert np.abs(several - single).max() > 1e-2 and np.abs(each[0] - each[1]).max() > 1e-2


# ---- factors per head


def test_factors_per_head_are_keras_einsum_dense(base, configure):
    run = configure(rank=3, alpha=3, targets="q+v+o", method__per_head=True)
    start = init(base, run)
    params = moved(start.params)
    factors = params[Q]
    assert factors.a.shape == (3, 4, 32, 3) and factors.b.shape == (3, 3, 8)
    # kernel + einsum("hdr,rk->dhk"), as EinsumDense.kernel with lora_kernel_a [heads, d, r] and lora_kernel_b [r, k]
    added = jnp.einsum("lhdr,lrk->ldhk", factors.a, factors.b).reshape(3, 32, 32)
    np.testing.assert_allclose(delta_of(run, params, start.constants)[Q].product(), added, atol=1e-6)
    assert isinstance(params[f"{ATTN}/o/adapter"], LowRank)
    assert start.trainable == 3 * 3 * (2 * (4 * 32 + 8) + 64) + HEAD


def test_counts_of_kerass_gemma_2(configure):
    """Keras' gemma2_2b_en with enable_lora(rank=4): 2,928,640 of 2,617,270,528 parameters train."""
    kind, values = NAMED["gemma2_2b"]
    row = FAMILIES[kind]
    config = row.config(**{f.name: values[f.name] for f in dataclasses.fields(row.config) if f.name in values})
    model = fit(row, config, set(), "causal", labels=2, pool="last").module
    run = configure(rank=4, targets="qv", method__per_head=True)
    shapes = initial_shapes(model, run)
    assert shapes.trainable == 2_928_640
    assert shapes.trainable + count(model) == 2_617_270_528


def test_heads_of_keys_and_values_are_those_of_the_model(configure):
    start = init(model_of("llama"), configure(rank=2, targets="qkvo", method__per_head=True))
    shapes = {name: start.params[f"{ATTN}/{name}/adapter"].a.shape for name in "qkv"}
    assert shapes == {"q": (2, 4, 24, 2), "k": (2, 2, 24, 2), "v": (2, 2, 24, 2)}
    gpt2 = init(model_of("gpt2"), configure(rank=2, targets="q", method__per_head=True))
    assert gpt2.params[Q].a.shape == (2, 3, 24, 2)


# ---- one A for several projections


def test_fused_projections_share_an_a(base, configure):
    run = configure(rank=5, targets="qkvo", method__share_a="qkv")
    start = init(base, run)
    assert start.trainable == 3 * (32 * 5 + 3 * 5 * 32 + 5 * 64) + HEAD
    delta = delta_of(run, moved(start.params), start.constants)
    np.testing.assert_array_equal(delta[Q].a, delta[V].a)
    assert (delta[Q].b != delta[V].b).any() and delta[f"{ATTN}/o/adapter"].a.shape == (3, 32, 5)
    assert (delta[f"{ATTN}/o/adapter"].a != delta[Q].a).any()


def test_gates_share_an_a_too(configure):
    run = configure(rank=4, targets="qkvo+mlp", method__share_a="all")
    start = init(model_of("llama"), run)
    a = {path for path in start.params if path.endswith("/a")}
    assert a == {f"{ATTN}/qkv/a", f"{MLP}/gate_up/a"}
    assert start.trainable == 2 * 4 * ((24 + 32 + 16 + 16) + (32 + 24) + (24 + 32 + 32) + (32 + 24))
