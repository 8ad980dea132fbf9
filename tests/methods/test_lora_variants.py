"""LoRA's variants: what each computes, what it trains, and that it packs, merges and saves like the plain one."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import model_of
from helpers.named_models import NAMED
from helpers.packed import assert_packed_equals_alone

from lora_jax.adapters import Dora, LowRank, Replacement
from lora_jax.adapters.dora import column_norms
from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods import method_of
from lora_jax.methods.lora import Lora
from lora_jax.models import FAMILIES
from lora_jax.models.options import ComputeOptions
from lora_jax.models.quantised import quantise
from lora_jax.train.initial import initial_shapes
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.step import outputs_of, program_of
from lora_jax.weights.adapters import load_adapter, save_adapter
from lora_jax.weights.heads import fit

ATTN, MLP = "backbone/layers/attn", "backbone/layers/mlp"
Q, V, UP = f"{ATTN}/q/adapter", f"{ATTN}/v/adapter", f"{MLP}/up/adapter"
HEAD = 32 * 7 + 7
TOKENS = np.arange(1, 19).reshape(2, 9)
MASK = TOKENS > 0
PLAIN = {"rank": 4, "lr": 1e-2, "seed": 3}
OTHERS = [
    {"rank": 2, "targets": "qv@0:2", "lr": 3e-3, "seed": 1, "optim__weight_decay": 0.3},
    {"rank": 8, "targets": "mlp@1:+qv", "lr": 5e-3, "seed": 2, "method__rank_pattern": {"qv@1": 3}, "alpha": "2r"},
]
OF_HEADS = {"mlp@1:+qv": "o@1:+qv", "qv@0:2": "qv@0:2", None: "qkvo"}  # targets that have heads
# Settings of the method, alone and combined.
VARIANTS = {
    "dora": {"method__dora": True, "method__dropout": 0.2},
    "pissa": {"method__init": "pissa"},
    "pissa, rslora, dora, lora+": {
        "method__init": "pissa",
        "method__scaling": "rslora",
        "method__dora": True,
        "method__lr_ratio": 2.0,
        "method__dropout": 0.1,
    },
    "lora-ga": {"method__init": "lora_ga", "method__gradient_batches": 2},
    "lora-fa": {"method__freeze_a": True},
    "lora-fa, pissa, dora": {"method__freeze_a": True, "method__init": "pissa", "method__dora": True},
    "factor dropout": {"method__factor_dropout": 0.3},
    "factor dropout, dora, pissa": {"method__factor_dropout": 0.3, "method__dora": True, "method__init": "pissa"},
    "per head": {"method__per_head": True},
    "share_a": {"method__share_a": "qkv"},
    "share_a, lora-fa": {"method__share_a": "all", "method__freeze_a": True},
    "biases, norms, lora+": {
        "method__bias": "targets",
        "method__train": "re:attn_norm/scale$",
        "method__lr_ratio": 4.0,
    },
}


def settings_of(run, variant):
    heads = {"targets": OF_HEADS[run.get("targets")]} if variant.get("method__per_head") else {}
    return run | variant | heads


def init(base, run):
    return method_of(run.method).init(base, run)


def delta_of(run, params, constants):
    return method_of(run.method).materialise(params, constants)


def moved(params, size=0.05):
    """Parameters as after training: every number has moved."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape, scale=size), leaf.dtype), params)


def with_head_of(base, start):
    return graft(base, {path: value for path, value in start.params.items() if path.startswith("head/")})


logits = jax.jit(lambda model: model(TOKENS, MASK))


# ---- what holds for every variant


@pytest.fixture(scope="module", params=VARIANTS)
def started(request, base, configure, pack_of):
    """A run of a variant, and its start."""
    run = configure(**settings_of(OTHERS[1], VARIANTS[request.param]))
    return run, pack_of(base, [run]).inits[0]


def test_a_run_starts_as_the_base_with_a_fresh_head(base, started):
    run, start = started
    expected = logits(with_head_of(base, start))
    actual = logits(graft(base, delta_of(run, start.params, start.constants)))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_merged_is_grafted(base, started):
    run, start = started
    delta = delta_of(run, moved(start.params), start.constants)
    grafted, merged = logits(graft(base, delta)), logits(merge(base, delta))
    np.testing.assert_allclose(grafted, merged, atol=1e-5 * np.abs(merged).max())
    assert np.abs(merged - logits(with_head_of(base, start))).max() > 0.1 * np.abs(merged).max()


def test_a_saved_run_computes_the_same(base, started, tmp_path):
    run, start = started
    params = moved(start.params)
    source = {"base_source": "nowhere", "base_fingerprint": "none"}
    save_adapter(tmp_path / "adapter", params, start.constants, **source, config={})
    loaded = load_adapter(tmp_path / "adapter", base_fingerprint="none")
    expected = logits(graft(base, delta_of(run, params, start.constants)))
    # The plain method, because it reads the variant from what the files have.
    delta = Lora().materialise(loaded.params, loaded.constants)
    np.testing.assert_array_equal(logits(graft(base, delta)), expected)


def test_shapes_and_counts_are_known_without_weights(base, started):
    run, start = started
    shapes = initial_shapes(jax.eval_shape(lambda: base), run)
    assert shapes.trainable == start.trainable
    for part in ("params", "constants"):
        own, traced = (jax.tree.map(lambda leaf: jnp.shape(leaf), getattr(init, part)) for init in (start, shapes))
        assert str(own) == str(traced)


def test_what_trains_is_what_moves(started):
    """Every number that is counted is one of `params`, except the padding of layers of a smaller rank."""
    _, start = started
    size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
    assert start.trainable <= size
    tree = jax.tree.leaves(Lora().learning_rate_multipliers(start.params, start.constants))
    assert len(tree) == len(jax.tree.leaves(start.params))


# Names of variants that share a program, where None is the plain method with what is compiled in.
PACKS = [
    ({}, ["pissa", "lora-ga", None, "factor dropout", "biases, norms, lora+"]),
    ({"method__dora": True}, ["factor dropout, dora, pissa", "dora", None]),
    ({"method__freeze_a": True, "method__dora": True}, ["lora-fa, pissa, dora", None]),
    ({"method__per_head": True}, ["per head", None]),
    ({"method__share_a": "qkv"}, ["share_a", None]),
    ({"method__share_a": "all", "method__freeze_a": True}, ["share_a, lora-fa", None]),
]


@pytest.mark.parametrize("static, names", PACKS, ids=str)
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure, static, names):
    """Runs of different variants, sizes, targets, layers, learning rates and weight decays."""
    runs = [
        settings_of(run, static | VARIANTS.get(name, {})) | {"seed": seed}
        for seed, run, name in zip(itertools.count(), itertools.cycle([*OTHERS, PLAIN]), names, strict=False)
    ]
    runs = [configure(**run, steps=6, batch=8, dtype="float64") for run in runs]
    assert_packed_equals_alone(base, pack_of, runs, steps=6)


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


# ---- DoRA


def direct(w, a, b, m):
    total = np.asarray(w, np.float64) + np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return m * total / np.linalg.norm(total, axis=0)


def test_dora_is_its_papers_equation_5(base, configure):
    run = configure(rank=4, targets="q+mlp", alpha=8, method__dora=True)
    start = init(base, run)
    params = moved(start.params)
    merged = parameters(merge(base, delta_of(run, params, start.constants)))
    for site in (f"{ATTN}/q", f"{MLP}/down"):
        for layer in range(3):
            pair, m = params[f"{site}/adapter"], params[f"{site}/magnitude"].value[layer]
            w = parameters(base)[f"{site}/kernel"][layer]
            np.testing.assert_allclose(
                merged[f"{site}/kernel"][layer], direct(w, pair.a[layer], 2 * pair.b[layer], m), atol=1e-6
            )
    assert start.trainable == 3 * 4 * (64 + 2 * 80) + 3 * (32 + 48 + 32) + HEAD


def test_column_norms_in_float32_are_those_of_the_sum():
    rng = np.random.default_rng(0)
    w, a = rng.normal(size=(256, 64), scale=0.05), rng.normal(size=(256, 16), scale=0.06)
    for size in (0, 1e-4, 0.05, 5):
        b = rng.normal(size=(16, 64), scale=size)
        expected = np.linalg.norm(w + a @ b, axis=0)
        actual = column_norms(*(jnp.asarray(array, jnp.float32) for array in (w, a, b)))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_doras_norm_is_a_constant_in_the_gradient(base):
    w = parameters(base)[f"{ATTN}/q/kernel"][0]
    rng = np.random.default_rng(0)
    x, a, b, m = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 5, 32), (32, 4), (4, 32), (32,)))

    def ours(a, b, m):
        return jnp.sin(Dora(a, b, m, jnp.bool_(True))(x, w, None)).sum()

    def theirs(a, b, m):
        total = w + a @ b
        return jnp.sin(x @ (m * total / jax.lax.stop_gradient(jnp.linalg.norm(total, axis=0)))).sum()

    for actual, expected in zip(*(jax.grad(f, (0, 1, 2))(a, b, m) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_a_dora_that_is_not_active_is_the_base_and_a_column_of_zeros_has_no_nan(base):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 32)), jnp.float32)
    w = parameters(base)[f"{ATTN}/q/kernel"][0].at[:, 3].set(0)
    zeros = Dora(jnp.zeros((32, 2)), jnp.zeros((2, 32)), jnp.zeros(32), jnp.bool_(False))
    np.testing.assert_allclose(zeros(x, w, None), x @ w, atol=1e-6)
    for active in (True, False):
        grads = jax.grad(lambda m: Dora(zeros.a, zeros.b, m, jnp.bool_(active))(x, w, None).sum())(zeros.magnitude)  # noqa: B023
        assert np.isfinite(grads).all() and grads.any() == active


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_dora_on_a_quantised_base_rescales_the_dequantised_kernel(base, configure, kind):
    kernels = {path: quantise(w, kind) for path, w in parameters(base).items() if path == f"{ATTN}/q/kernel"}
    narrow = graft(base, {})
    narrow.backbone.layers.attn.q.kernel.set_value(kernels[f"{ATTN}/q/kernel"])
    wide = graft(base, {})
    wide.backbone.layers.attn.q.kernel.set_value(kernels[f"{ATTN}/q/kernel"].astype(jnp.float32))
    run = configure(rank=4, targets="q", method__dora=True, method__init="pissa")
    for model in (narrow, wide):
        start = init(model, run)
        expected = with_head_of(model, start)(TOKENS, MASK)
        logits = graft(model, delta_of(run, start.params, start.constants))(TOKENS, MASK)
        np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    delta = delta_of(run, moved(start.params), start.constants)
    results = [graft(model, delta)(TOKENS, MASK) for model in (narrow, wide)]
    np.testing.assert_allclose(*results, atol=1e-5 * np.abs(results[0]).max())
    np.testing.assert_allclose(merge(narrow, delta)(TOKENS, MASK), results[0], atol=1e-5 * np.abs(results[0]).max())


def test_a_merged_dora_cannot_be_undone(base, configure):
    run = configure(rank=4, targets="q", method__dora=True)
    start = init(base, run)
    with pytest.raises(UserError, match="cannot be undone after merging"):
        merge(base, delta_of(run, start.params, start.constants), sign=-1)


# ---- PiSSA


def test_pissas_pair_is_the_best_approximation_of_its_rank(base, configure):
    run = configure(rank=6, targets="q+mlp", alpha=3, method__init="pissa", method__rank_pattern={"q@1": 2})
    start = init(base, run)
    for site, ranks in ((f"{ATTN}/q", (6, 2, 6)), (f"{MLP}/up", (6, 6, 6))):
        pair, scale = start.params[f"{site}/adapter"], start.constants[f"{site}/adapter"].scale
        for layer, rank in enumerate(ranks):
            w = np.asarray(parameters(base)[f"{site}/kernel"][layer], np.float64)
            u, s, vt = np.linalg.svd(w, full_matrices=False)
            np.testing.assert_allclose(
                scale[layer] * pair.product()[layer], u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-5
            )
            # A and B share the singular values evenly.
            np.testing.assert_allclose(
                np.linalg.norm(pair.a[layer], axis=0)[:rank], np.linalg.norm(pair.b[layer], axis=1)[:rank], rtol=1e-4
            )
            assert not pair.a[layer, :, rank:].any() and not pair.b[layer, rank:].any()
    assert start.trainable == (6 + 2 + 6) * 64 + 3 * 6 * 80 * 2 + HEAD
    assert isinstance(start.constants[f"{ATTN}/q/initial"], LowRank)


def test_only_runs_with_a_residual_share_its_program(configure):
    plain, gaussian, pissa = (configure(method__init=name) for name in ("uniform", "gaussian", "pissa"))
    assert plain.program_key() == gaussian.program_key() != pissa.program_key()


# ---- what is not defined


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method__dora": True}, r"method.dora=true: rescales .* embedding backbone/embed/word; leave it out"),
        ({"method__init": "pissa"}, r"method.init=pissa: decomposes .* embedding backbone/embed/word; leave it out"),
    ],
)
def test_an_embedding_is_refused_where_it_is_not_defined(base, configure, settings, message):
    with pytest.raises(UserError, match=message):
        Lora().validate(jax.eval_shape(lambda: base), configure(targets="embed+q", **settings))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"targets": "all", "method__per_head": True},
            r"^method.per_head=true: q, k, v and o have heads, and targets=",
        ),
        (
            {"targets": "o", "method__share_a": "qkv"},
            r"^method.share_a=qkv: must be none unless .* more of q, k and v$",
        ),
        (
            {"targets": "qv", "method__share_a": "qkv", "method__rank_pattern": {"v@1": 2}},
            r"^method.share_a=qkv: the sites of backbone/layers/attn/qkv must have one rank in each layer$",
        ),
        ({"rank": 17, "method__init": "lora_ga"}, r"^rank=17: .* at most 16 with method.init=lora_ga, which takes 2r"),
        ({"method__train": "re:nothing"}, r"^method.train='re:nothing': 're:nothing' matches nothing; this model has"),
        ({"method__train": "re:attn/q/kernel"}, r"^method.train=.* matches .*/attn/q/kernel, which targets adapt"),
    ],
)
def test_what_a_variant_cannot_do_on_a_base_is_refused(base, configure, settings, message):
    with pytest.raises(UserError, match=message):
        Lora().validate(jax.eval_shape(lambda: base), configure(**{"rank": 4, "targets": "qv"} | settings))


def test_biases_of_a_model_without_any_are_refused(configure):
    with pytest.raises(UserError, match=r"^method.bias=targets: must be none, because no bias of this model would"):
        Lora().validate(model_of("llama"), configure(rank=4, targets="qv", method__bias="targets"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"per_head": True, "dora": True}, r"^method.per_head=True: must be false with method.dora"),
        ({"per_head": True, "init": "pissa"}, r"^method.per_head=True: must be false with method.init"),
        ({"per_head": True, "freeze_a": True}, r"^method.per_head=True: must be false with method.freeze_a"),
        ({"per_head": True, "share_a": "qkv"}, r"^method.per_head=True: must be false with method.share_a"),
        ({"share_a": "qkv", "init": "lora_ga"}, r"^method.share_a='qkv': must be none with method.init=lora_ga"),
        ({"ensemble": 4}, r"^method.ensemble=4: must be 1 without method.factor_dropout"),
        ({"ensemble": 4, "factor_dropout": 0.1, "dropout": 0.1}, r"^method.ensemble=4: must be 1 with method.dropout"),
    ],
)
def test_settings_that_do_not_combine_are_refused(configure, settings, message):
    with pytest.raises(UserError, match=message):
        configure(**{f"method__{key}": value for key, value in settings.items()})


def test_an_ensemble_is_refused_for_generation(configure):
    run = configure(method__ensemble=2, method__factor_dropout=0.1)
    e2e = run.model_copy(update={"task": run.task.model_copy(update={"name": "e2e"})})
    with pytest.raises(UserError, match=r"^method.ensemble=2: must be 1 for task=e2e, whose texts one model generates"):
        program_of(e2e)


# ---- LoRA-GA


def test_lora_gas_pair_has_singular_vectors_of_the_first_gradient(base, configure, pack_of):
    run = configure(
        rank=4,
        targets="q+mlp@1:",
        batch=8,
        seed=2,
        method__init="lora_ga",
        method__gradient_batches=3,
        method__gamma=25.0,
    )
    pack = pack_of(base, [run])
    start, paths = pack.inits[0], (f"{ATTN}/q", f"{MLP}/down")
    head = {path: value for path, value in start.params.items() if path.startswith("head/")}

    def loss(kernels, batch):
        model = graft(base, head | {f"{path}/kernel": Replacement(kernel) for path, kernel in kernels.items()})
        return OBJECTIVES["classification"].loss(model, batch, options=ComputeOptions())

    kernels = {path: parameters(base)[f"{path}/kernel"] for path in paths}
    batches = [jax.tree.map(lambda leaf: leaf[0], pack.example(step)) for step in range(3)]
    gradients = [jax.jit(jax.grad(loss))(kernels, batch) for batch in batches]
    for path, layers in zip(paths, ((0, 1, 2), (1, 2)), strict=True):
        pair = start.params[f"{path}/adapter"]
        for layer in layers:
            gradient = np.mean([np.asarray(each[path][layer], np.float64) for each in gradients], 0)
            u, s, vt = np.linalg.svd(gradient)
            stable = 32**0.25 / 5
            # A and B are known up to the signs of singular vectors.
            np.testing.assert_allclose(np.abs(u[:, :4].T @ pair.a[layer]), stable * np.eye(4), atol=2e-3)
            if s[7] > 1e-3 * s[0]:  # smaller ones are noise in float32
                np.testing.assert_allclose(np.abs(pair.b[layer] @ vt[4:8].T), stable * np.eye(4), atol=2e-2)
            np.testing.assert_allclose(pair.b[layer] @ pair.b[layer].T, stable**2 * np.eye(4), atol=1e-5)
    assert not start.params[f"{MLP}/down/adapter"].a[0].any()


def test_lora_ga_without_gradients_is_an_error(base, configure):
    with pytest.raises(KeyError):
        init(base, configure(rank=4, targets="q", method__init="lora_ga"))


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


# ---- biases and other parameters


@pytest.mark.parametrize(
    "settings, extra",
    [
        ({"method__bias": "all"}, 3 * (4 * 32 + 48 + 32 + 64) + 32 + 32),  # with the pooler's and the embedding norm's
        ({"method__bias": "targets"}, 2 * 32),
        ({"method__train": "re:/layers/[12]/attn_norm/"}, 2 * 64),
        ({"method__train": "re:embed/word"}, 101 * 32),
        ({"method__bias": "targets", "method__train": "re:/attn/[qk]/bias$"}, 2 * 3 * 32),
    ],
)
def test_other_parameters_train_in_full(base, configure, settings, extra):
    run = configure(rank=4, targets="q@1:", **settings)
    start = init(base, run)
    assert start.trainable == 2 * 4 * 64 + HEAD + extra
    delta = delta_of(run, moved(start.params), start.constants)
    grafted = parameters(graft(base, {path: value for path, value in delta.items() if path != Q}))
    for path, value in grafted.items():
        active = start.constants[path].active if path in start.constants else None
        if path.startswith("head/"):
            continue
        changed = np.asarray(value != parameters(base)[path])
        if active is None:
            assert not changed.any(), path
        else:
            assert (changed.reshape(*active.shape, -1).mean(-1) > 0.9).tolist() == np.asarray(active).tolist(), path
