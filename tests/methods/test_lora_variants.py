"""LoRA's variants: each starts as the base, merges, saves, packs, and refuses what it cannot do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lora_runs import delta_of, logits
from helpers.method_runs import moved
from helpers.packed import assert_packed_equals_alone

from lora_jax.delta import graft
from lora_jax.errors import UserError
from lora_jax.methods.lora import Lora
from lora_jax.train.initial import initial_shapes
from lora_jax.train.step import program_of
from lora_jax.weights.adapters import load_adapter, save_adapter

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
    "all biases": {"method__bias": "all"},
}


def settings_of(run, variant):
    heads = {"targets": OF_HEADS[run.get("targets")]} if variant.get("method__per_head") else {}
    return run | variant | heads


# ---- what holds for every variant


@pytest.fixture(scope="module", params=VARIANTS)
def started(request, base, configure, pack_of):
    """A run of a variant, and its start."""
    run = configure(**settings_of(OTHERS[1], VARIANTS[request.param]))
    return run, pack_of(base, [run]).inits[0]


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
    ({}, ["pissa", "lora-ga", None, "factor dropout", "biases, norms, lora+", "all biases"]),
    ({"method__dora": True}, ["factor dropout, dora, pissa", "dora", None, "pissa, rslora, dora, lora+"]),
    ({"method__freeze_a": True}, ["lora-fa", None]),
    ({"method__freeze_a": True, "method__dora": True}, ["lora-fa, pissa, dora", None]),
    ({"method__per_head": True}, ["per head", None]),
    ({"method__share_a": "qkv"}, ["share_a", None]),
    ({"method__share_a": "all", "method__freeze_a": True}, ["share_a, lora-fa", None]),
]


@pytest.mark.slow
@pytest.mark.parametrize("static, names", PACKS, ids=str)
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure, static, names):
    """Runs of different variants, sizes, targets, layers, learning rates and weight decays."""
    runs = [
        settings_of(run, static | VARIANTS.get(name, {})) | {"seed": seed}
        for seed, run, name in zip(itertools.count(), itertools.cycle([*OTHERS, PLAIN]), names, strict=False)
    ]
    runs = [configure(**run, steps=6, batch=8, dtype="float64") for run in runs]
    assert_packed_equals_alone(base, pack_of, runs, steps=6)


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
    with pytest.raises(
        UserError, match=r"^method.ensemble=2: must be 1 for task=e2e, whose outputs cannot be averaged"
    ):
        program_of(e2e)
