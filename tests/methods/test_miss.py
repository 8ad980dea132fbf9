"""MiSS: the sums of shards, counts, and that runs of any rank and target share a pack."""

import jax
import numpy as np
import pytest
from helpers.method_runs import moved
from helpers.packed import assert_packed_equals_alone

from lora_jax.delta import merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods.miss import Miss
from lora_jax.weights.adapters import load_adapter, save_adapter

ATTN, MLP = "backbone/layers/attn", "backbone/layers/mlp"
HEAD = 32 * 7 + 7
STEPS = 20
RUNS = [
    {"rank": 4, "targets": "qv", "lr": 1e-2, "seed": 3},
    {"rank": 32, "targets": "all@1:", "lr": 3e-3, "seed": 1, "optim__weight_decay": 0.3},
    {"rank": 7, "targets": "mlp@:2", "lr": 5e-3, "optim__clip_norm": 0.1},
]


@pytest.mark.parametrize("rank", [1, 4, 7, 32])
def test_a_site_adds_the_sum_of_shards_times_d(base, configure, rank):
    """As PEFT's forward pass computes it: the input is padded to whole shards, which are summed."""
    start = Miss().init(base, configure("miss", rank=rank, targets="mlp"))
    params, path = moved(start.params, 0.3), f"{MLP}/down/adapter"
    pair = Miss().materialise(params, start.constants)[path]
    x = np.random.default_rng(1).normal(size=(5, 48))
    shards = np.pad(x, ((0, 0), (0, -48 % rank))).reshape(5, -1, rank)
    for layer in range(3):
        expected = shards.sum(1) @ np.asarray(params[path].d[layer], np.float64)
        np.testing.assert_allclose(x @ np.asarray(pair.product()[layer], np.float64), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(pair.product()[layer][rank:], np.asarray(pair.product()[layer])[: 48 - rank])


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"rank": 5, "targets": "qv"}, 3 * 2 * 5 * 32),
        ({"rank": 5, "targets": "mlp@1:"}, 2 * 5 * (48 + 32)),
        ({"rank": 5, "targets": "re:pooler"}, 5 * 32),
    ],
)
def test_as_many_parameters_train_as_d_has(base, configure, settings, expected):
    run = configure("miss", **settings)
    assert Miss().init(base, run).trainable == expected + HEAD
    assert jax.eval_shape(lambda: Miss().init(base, run)).trainable == expected + HEAD


@pytest.mark.slow
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure):
    runs = [configure("miss", **run, steps=STEPS, batch=8, dtype="float64") for run in RUNS]
    assert len({run.program_key() for run in runs}) == 1
    assert_packed_equals_alone(base, pack_of, runs, steps=STEPS)


def test_a_neutral_index_selects_nothing(base, configure):
    start = Miss().init(base, configure("miss", rank=5, targets="q"))
    path = f"{ATTN}/q/adapter"
    pair = Miss().materialise(moved(start.params, 0.3), {path: start.constants[path].neutral()})[path]
    assert not pair.a.any() and not pair.product().any()


def test_layers_that_are_not_adapted_stay_at_zero(base, pack_of, configure):
    pack = pack_of(base, [configure("miss", targets="q@1:", lr=0.1, steps=5)]).train(base, 5)
    d = pack.params(0)[f"{ATTN}/q/adapter"].d
    assert not d[0].any() and d[1:].any((-1, -2)).all()


def test_a_merge_can_be_undone(base, configure):
    start = Miss().init(base, configure("miss", rank=5, targets="qv@0:2+mlp"))
    delta = Miss().materialise(moved(start.params, 0.3), start.constants)
    blocks = {path: value for path, value in delta.items() if path.startswith("backbone/")}
    undone = parameters(merge(merge(base, blocks), blocks, sign=-1))
    for path, value in parameters(base).items():
        np.testing.assert_allclose(undone[path], value, atol=1e-5, err_msg=path)


def test_a_saved_adapter_is_the_adapter(base, configure, tmp_path):
    start = Miss().init(base, configure("miss", rank=5, targets="qv@1:+re:pooler"))
    folder = tmp_path / "adapter"
    save_adapter(folder, start.params, start.constants, base_source="x", base_fingerprint="", config={})
    loaded = load_adapter(folder, base_fingerprint="")
    for tree, expected in ((loaded.params, start.params), (loaded.constants, start.constants)):
        assert jax.tree.structure(tree) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"targets": "q+embed"}, r"targets='q\+embed': backbone/embed/word is an embedding, and method=miss"),
        ({"rank": 33, "targets": "q"}, r"rank=33: backbone/layers/attn/q has 32 inputs, so its rank is at most that"),
    ],
)
def test_what_is_not_defined_is_refused(base, configure, settings, message):
    with pytest.raises(UserError, match=message):
        Miss().validate(base, configure("miss", **settings))
