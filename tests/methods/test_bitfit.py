"""BitFit: which biases train, how many, and that runs with different targets share a pack."""

import jax
import numpy as np
import pytest
from helpers.packed import assert_packed_equals_alone

from lora_jax.delta import graft, parameters
from lora_jax.methods.bitfit import BitFit

STEPS = 50
RUNS = [
    {"targets": "all", "lr": 1e-2, "seed": 3},
    {"targets": "qv@0:2", "lr": 3e-3, "seed": 1, "optim__weight_decay": 0.3},
    {"targets": "mlp@1:", "lr": 5e-3, "seed": 2, "method__norms": False, "optim__clip_norm": 0.1},
]
HEAD = 32 * 7 + 7
NORMS = 32 + 3 * 2 * 32  # of the embedding, and two a layer


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"targets": "all"}, 3 * (4 * 32 + 48 + 32) + NORMS),
        ({"targets": "qv@0:2"}, 2 * 2 * 32 + NORMS),
        ({"targets": "mlp@1:", "method__norms": False}, 2 * (48 + 32)),
    ],
)
def test_as_many_biases_train_as_the_targets_have(base, configure, settings, expected):
    run = configure("bitfit", **settings)
    assert BitFit().init(base, run).trainable == expected + HEAD
    shapes = jax.eval_shape(lambda: BitFit().init(base, run))
    assert shapes.trainable == expected + HEAD


def test_at_the_start_the_model_is_the_base_with_a_fresh_head(base, configure):
    start = BitFit().init(base, configure("bitfit", targets="qv@0:2"))
    model = graft(base, BitFit().materialise(start.params, start.constants))
    for path, value in parameters(base).items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(parameters(model)[path], value, err_msg=path)


@pytest.mark.slow
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure):
    runs = [configure("bitfit", **run, steps=STEPS, batch=8, dtype="float64") for run in RUNS]
    assert_packed_equals_alone(base, pack_of, runs, steps=STEPS)


def test_layers_that_do_not_train_keep_the_bases_bias(base, configure):
    start = BitFit().init(base, configure("bitfit", targets="qv@0:2", method__norms=False))
    moved = jax.tree.map(lambda leaf: leaf + 1, start.params)
    model = parameters(graft(base, BitFit().materialise(moved, start.constants)))
    for path in start.constants:
        np.testing.assert_array_equal(model[path][2], parameters(base)[path][2], err_msg=path)
        assert (np.asarray(model[path][:2]) != np.asarray(parameters(base)[path][:2])).all()
