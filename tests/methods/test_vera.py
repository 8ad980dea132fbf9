"""VeRA: the shared random pair, the vectors that train, counts, and that runs of any rank and target share a pack."""

import jax
import numpy as np
import pytest
from helpers.families import inputs_of, model_of
from helpers.method_runs import moved
from helpers.packed import assert_packed_equals_alone
from methods.test_counts import model_of as named_model

from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods.vera import Vera
from lora_jax.weights.adapters import load_adapter, save_adapter

ATTN, MLP = "backbone/layers/attn", "backbone/layers/mlp"
HEAD = 32 * 7 + 7
STEPS = 20
RUNS = [
    {"rank": 4, "targets": "qv", "lr": 1e-1, "seed": 3},
    {"rank": 64, "targets": "all@1:", "lr": 3e-2, "seed": 1, "optim__weight_decay": 0.3},
    {"rank": 7, "targets": "mlp@:2", "method__d_initial": 1.0, "method__projection_seed": 5, "optim__clip_norm": 0.1},
]


def test_all_sites_use_parts_of_one_pair(base, configure):
    constants = Vera().init(base, configure("vera", rank=64, targets="all")).constants
    whole_a, whole_b = constants[f"{MLP}/down/adapter"].a, constants[f"{MLP}/up/adapter"].b
    assert whole_a.shape == (48, 64) and whole_b.shape == (64, 48)
    for path, part in constants.items():
        np.testing.assert_array_equal(part.a, whole_a[: part.a.shape[0]], err_msg=path)
        np.testing.assert_array_equal(part.b, whole_b[:, : part.b.shape[1]], err_msg=path)
    for values, fan_in in ((whole_a, 48), (whole_b, 64)):  # PEFT's kaiming_uniform
        bound = (6 / fan_in) ** 0.5
        assert -bound <= values.min() < -0.98 * bound and 0.98 * bound < values.max() <= bound
        assert np.isclose(values.std(), bound / 3**0.5, rtol=0.03)


def test_the_pair_depends_on_the_projection_seed_alone(base, configure):
    def pair(**settings):
        return Vera().init(base, configure("vera", targets="q", **settings)).constants[f"{ATTN}/q/adapter"].a

    np.testing.assert_array_equal(pair(seed=0), pair(seed=7))
    assert (pair() != pair(method__projection_seed=1)).all()


def test_the_update_is_the_papers(base, configure):
    start = Vera().init(base, configure("vera", rank=5, targets="mlp"))
    params, path = moved(start.params, 0.3), f"{MLP}/up/adapter"
    pair = Vera().materialise(params, start.constants)[path]
    a, b = (np.asarray(matrix, np.float64) for matrix in (start.constants[path].a, start.constants[path].b))
    for layer in range(3):
        d, scale = (np.asarray(vector[layer], np.float64) for vector in (params[path].d, params[path].b))
        expected = a @ np.diag(d) @ b @ np.diag(scale)
        np.testing.assert_allclose(pair.product()[layer], expected, rtol=1e-5, atol=1e-5)


def test_at_the_start_the_model_is_the_base(configure):
    base, inputs = model_of("llama"), inputs_of("llama")
    start = Vera().init(base, configure("vera", rank=300))  # a rank above the widths is of use in VeRA
    np.testing.assert_allclose(graft(base, Vera().materialise(start.params, start.constants))(*inputs), base(*inputs))
    assert all((value.d[value.d != 0] == np.float32(0.1)).all() for value in start.params.values())


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"rank": 5, "targets": "qv"}, 3 * 2 * (5 + 32)),
        ({"rank": 5, "targets": "mlp@1:"}, 2 * (5 + 48 + 5 + 32)),
        ({"rank": 5, "targets": "re:pooler"}, 5 + 32),
    ],
)
def test_as_many_parameters_train_as_the_paper_says(base, configure, settings, expected):
    run = configure("vera", **settings)
    assert Vera().init(base, run).trainable == expected + HEAD
    assert jax.eval_shape(lambda: Vera().init(base, run)).trainable == expected + HEAD


def test_roberta_base_at_rank_1024_trains_43_thousand(configure):
    """Table 2 of the paper: 0.043M for q and v of RoBERTa base, L·(d_model + r) for each of them."""
    run = configure("vera", rank=1024, targets="qv")
    start = jax.eval_shape(lambda base: Vera().init(base, run), named_model("roberta_base"))
    head = count({path: value for path, value in start.params.items() if path.startswith("head/")})
    assert start.trainable - head == 12 * 2 * (768 + 1024) == 43_008


@pytest.mark.slow
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure):
    runs = [configure("vera", **run, steps=STEPS, batch=8, dtype="float64") for run in RUNS]
    assert len({run.program_key() for run in runs}) == 1
    assert_packed_equals_alone(base, pack_of, runs, steps=STEPS)


def test_layers_that_are_not_adapted_stay_at_zero(base, pack_of, configure):
    pack = pack_of(base, [configure("vera", targets="q@1:", lr=0.1, steps=5, optim__weight_decay=0.1)]).train(base, 5)
    vectors = pack.params(0)[f"{ATTN}/q/adapter"]
    assert not vectors.d[0].any() and not vectors.b[0].any()
    assert vectors.b[1:].any(-1).all()


def test_a_merge_can_be_undone(base, configure):
    start = Vera().init(base, configure("vera", rank=5, targets="qv@0:2+mlp"))
    delta = Vera().materialise(moved(start.params, 0.3), start.constants)
    blocks = {path: value for path, value in delta.items() if path.startswith("backbone/")}
    undone = parameters(merge(merge(base, blocks), blocks, sign=-1))
    for path, value in parameters(base).items():
        np.testing.assert_allclose(undone[path], value, atol=1e-5, err_msg=path)


def test_a_saved_adapter_is_the_adapter(base, configure, tmp_path):
    start = Vera().init(base, configure("vera", rank=5, targets="qv@1:+re:pooler"))
    folder = tmp_path / "adapter"
    save_adapter(folder, start.params, start.constants, base_source="x", base_fingerprint="", config={})
    loaded = load_adapter(folder, base_fingerprint="")
    for tree, expected in ((loaded.params, start.params), (loaded.constants, start.constants)):
        assert jax.tree.structure(tree) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_embeddings_are_refused(base, configure):
    with pytest.raises(UserError, match=r"targets='q\+embed': backbone/embed/word is an embedding, and method=vera"):
        Vera().validate(base, configure("vera", targets="q+embed"))


@pytest.mark.parametrize("settings", [{"method__d_initial": 0.0}, {"method__projection_seed": -1}, {"rank": 0}])
def test_bad_settings_are_refused(configure, settings):
    [(key, value)] = settings.items()
    with pytest.raises(UserError, match=rf"{key.replace('__', '.')}={value}: must be"):
        configure("vera", **settings)
