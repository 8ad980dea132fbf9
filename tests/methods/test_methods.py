"""Where runs start from: A, B and the head; scales; how much of a model each setting trains."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.delta import count, parameters
from lora_jax.errors import UserError
from lora_jax.methods import key_of, method_of
from lora_jax.methods.full import Full
from lora_jax.methods.lora import Lora, placements

ATTN, MLP = "backbone/layers/attn", "backbone/layers/mlp"
HEAD = 32 * 7 + 7


def init(base, run):
    return method_of(run.method).init(base, run)


# ---- A and B


@pytest.mark.parametrize("run", [{"rank": 4}, {"rank": 32, "targets": "mlp"}])
def test_a_is_uniform_within_one_over_the_root_of_d_in_and_b_is_zero(base, configure, run):
    for path, value in init(base, configure(**run)).params.items():
        if path.startswith("head/"):
            continue
        d_in = {"q": 32, "k": 32, "v": 32, "o": 32, "up": 32, "down": 48}[path.split("/")[-2]]
        a, bound = np.asarray(value.a), d_in**-0.5
        assert a.shape == (3, d_in, run["rank"]) and a.dtype == np.float32
        assert -bound <= a.min() < -0.95 * bound and 0.95 * bound < a.max() <= bound
        assert np.isclose(a.std(), bound / 3**0.5, rtol=0.15) and abs(a.mean()) < 0.15 * bound
        assert not np.asarray(value.b).any()


def test_gaussian_a_has_the_variance_one_over_d_in(base, configure):
    pair = init(base, configure(rank=32, targets="mlp", method__init="gaussian")).params[f"{MLP}/down/adapter"]
    a = np.asarray(pair.a)
    assert np.isclose(a.std(), 48**-0.5, rtol=0.05) and np.abs(a).max() > 2.5 * 48**-0.5
    assert abs(a.mean()) < 0.05 * 48**-0.5 and not np.asarray(pair.b).any()


def test_every_layer_site_and_seed_starts_from_its_own_numbers(base, configure):
    drawn = [
        layer
        for seed in (0, 1)
        for path, value in init(base, configure(rank=4, seed=seed)).params.items()
        if not path.startswith("head/")
        for layer in np.asarray(value.a)
    ]
    assert len({layer.tobytes() for layer in drawn}) == len(drawn) == 2 * 6 * 3


def test_adapting_fewer_layers_or_sites_changes_nothing_in_the_others(base, configure):
    whole = init(base, configure(rank=4)).params
    for targets in ("all@0:1", "q@2+v", "re:/[02]/attn"):
        part = init(base, configure(rank=4, targets=targets)).params
        for path, value in part.items():
            if path.startswith("head/"):
                np.testing.assert_array_equal(value.value, whole[path].value)
                continue
            adapted = [i for i in range(3) if np.asarray(value.a[i]).any()]
            np.testing.assert_array_equal(value.a[jnp.array(adapted)], whole[path].a[jnp.array(adapted)])
    assert adapted == [0, 2] and len(part) == 4 + 2


def test_a_is_drawn_at_its_own_rank_whatever_is_beside_it(base, configure, pack_of):
    runs = [configure(rank=4, targets="qv", batch=8, seed=6), configure(rank=16, batch=8, seed=1)]
    alone, packed = init(base, runs[0]).params, pack_of(base, runs)
    for path, value in packed.params(0).items():
        assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), value, alone[path])), path
    padded = packed.state.params[f"{ATTN}/q/adapter"].a[0]
    assert padded.shape == (3, 32, 16) and not padded[..., 4:].any()
    np.testing.assert_array_equal(padded[..., :4], alone[f"{ATTN}/q/adapter"].a)


def test_a_layer_of_a_smaller_rank_is_drawn_at_that_rank(base, configure):
    mixed = init(base, configure(rank=8, targets="q", method__rank_pattern={"q@1": 3}))
    a = mixed.params[f"{ATTN}/q/adapter"].a
    of = {rank: init(base, configure(rank=rank, targets="q")).params[f"{ATTN}/q/adapter"].a for rank in (3, 8)}
    np.testing.assert_array_equal(a[jnp.array([0, 2])], of[8][jnp.array([0, 2])])
    np.testing.assert_array_equal(a[1, :, :3], of[3][1])
    assert not a[1, :, 3:].any()


def test_keys_depend_on_seed_and_path_alone():
    keys = [jax.random.key_data(key_of(seed, path)).tolist() for seed in (0, 1) for path in ("a", "b")]
    assert len(set(map(tuple, keys))) == 4
    np.testing.assert_array_equal(jax.random.key_data(key_of(1, "b")), keys[3])


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_keys_are_folds_of_jaxs_own_key_of_a_seed(seed):
    expected = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"a"))
    np.testing.assert_array_equal(jax.random.key_data(key_of(seed, "a")), jax.random.key_data(expected))


# ---- scales


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"rank": 4, "alpha": 16}, 16 / 4),
        ({"rank": 4, "alpha": "2r"}, 2),
        ({"rank": 16, "alpha": "0.5r"}, 0.5),
        ({"rank": 4, "alpha": 16, "method__scaling": "rslora"}, 16 / 4**0.5),
        ({"rank": 4, "alpha": "2r", "method__scaling": "rslora"}, 2 * 4**0.5),
        ({"rank": 4, "alpha": 3.5, "method__scaling": "constant"}, 3.5),
    ],
)
def test_the_scale_is_folded_into_b(base, configure, settings, expected):
    start = init(base, configure(targets="q", **settings))
    np.testing.assert_allclose(start.constants[f"{ATTN}/q/adapter"].scale, [expected] * 3, rtol=1e-6)
    params = jax.tree.map(jnp.ones_like, start.params)
    ready = Lora().materialise(params, start.constants)
    np.testing.assert_allclose(ready[f"{ATTN}/q/adapter"].b, jnp.full((3, settings["rank"], 32), expected), rtol=1e-6)
    np.testing.assert_array_equal(ready[f"{ATTN}/q/adapter"].a, params[f"{ATTN}/q/adapter"].a)
    np.testing.assert_array_equal(ready["head/kernel"].value, params["head/kernel"].value)


def test_patterns_give_a_layer_its_own_rank_alpha_and_scale(base, configure):
    patterns = {"method__rank_pattern": {"q@1": 2, "mlp": 16}, "method__alpha_pattern": {"q@2": 4.0}}
    start = init(base, configure(rank=8, alpha="2r", targets="q@1:+mlp", method__scaling="constant", **patterns))
    np.testing.assert_array_equal(start.constants[f"{ATTN}/q/adapter"].scale, [0, 4, 4])  # not adapted; 2 x 2; its own
    np.testing.assert_array_equal(start.constants[f"{MLP}/up/adapter"].scale, [32] * 3)
    assert start.params[f"{ATTN}/q/adapter"].a.shape == (3, 32, 8)
    assert start.params[f"{MLP}/up/adapter"].a.shape == (3, 32, 16)


def test_dropout_is_a_constant_only_where_it_is_asked_for(base, configure):
    assert init(base, configure(rank=2, targets="q")).constants[f"{ATTN}/q/adapter"].dropout is None
    start = init(base, configure(rank=2, targets="q", method__dropout=0.25))
    ready = Lora().materialise(start.params, start.constants)
    np.testing.assert_array_equal(ready[f"{ATTN}/q/adapter"].dropout, [0.25] * 3)


# ---- how much trains


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("targets, matrices", [("q", 3), ("qv", 6), ("qkvo", 12), ("qv@1:", 4)])
def test_trainable_parameters_are_the_papers_count(base, configure, rank, targets, matrices):
    """2 · L · d · r for square matrices, L of them (arXiv 2106.09685, section 4.2), and the head."""
    start = init(base, configure(rank=rank, targets=targets))
    assert start.trainable == 2 * matrices * 32 * rank + HEAD


def test_trainable_parameters_of_other_shapes_and_ranks(base, configure):
    assert init(base, configure(rank=4, targets="mlp")).trainable == 3 * 2 * (32 + 48) * 4 + HEAD
    mixed = init(base, configure(rank=8, targets="q", method__rank_pattern={"q@1": 3}))
    assert mixed.trainable == (8 + 3 + 8) * 64 + HEAD
    gaussian = init(base, configure(rank=8, targets="q", method__init="gaussian"))
    assert gaussian.trainable == 3 * 8 * 64 + HEAD
    assert init(base, configure("full")).trainable == count(base)


# ---- the head, and full fine-tuning


def test_the_head_is_the_same_for_a_seed_whatever_the_method(base, configure):
    heads = [
        {path: np.asarray(value.value) for path, value in init(base, run).params.items() if path.startswith("head/")}
        for run in (configure(rank=2), configure(rank=16, targets="q"), configure("full"), configure(rank=2, seed=1))
    ]
    for other in heads[1:3]:
        assert all((other[path] == value).all() for path, value in heads[0].items())
    assert (heads[3]["head/kernel"] != heads[0]["head/kernel"]).all()
    assert np.isclose(heads[0]["head/kernel"].std(), 0.02, rtol=0.15) and not heads[0]["head/bias"].any()


def test_full_fine_tuning_starts_at_the_base_in_float32(base, configure):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
    params = init(narrow, configure("full")).params
    assert params.keys() == parameters(base).keys()
    for path, value in parameters(narrow).items():
        assert params[path].value.dtype == jnp.float32
        if not path.startswith("head/"):
            np.testing.assert_array_equal(params[path].value, value.astype(jnp.float32))
    assert Full().materialise(params, {}) == params


@pytest.mark.parametrize("settings", [{"rank": 33}, {"targets": "re:c_attn"}, {"method__rank_pattern": {"v": 40}}])
def test_what_a_base_cannot_do_is_refused_from_its_shapes_alone(base, configure, settings):
    abstract = jax.eval_shape(lambda: base)
    assert placements(abstract, configure(rank=32)).keys() == {f"{ATTN}/{x}" for x in "qkvo"} | {
        f"{MLP}/up",
        f"{MLP}/down",
    }
    Full().validate(abstract, configure("full"))
    with pytest.raises(UserError):
        Lora().validate(abstract, configure(**settings))
