"""A learning rate per layer: the multipliers, what 0 freezes, and that runs of different multipliers share a pack."""

import jax
import numpy as np
import pytest
from helpers.packed import assert_packed_equals_alone

from lora_jax.delta import count, parameters
from lora_jax.errors import UserError
from lora_jax.methods.layerwise import Layerwise

RUNS = [
    {"method__decay": 0.5, "lr": 3e-3, "seed": 3},
    {"method__multipliers": (0.0, 0.5, 2.0), "lr": 3e-3, "seed": 1, "optim__weight_decay": 0.3},
    {"method__multipliers": (0.0, 0.0, 1.0), "method__embeddings": 0.0, "seed": 2, "optim__clip_norm": 0.1},
]
Q, WORD, POOLER = "backbone/layers/attn/q/kernel", "backbone/embed/word/embedding", "backbone/pooler/kernel"


def factors(base, run):
    start = Layerwise().init(base, run)
    tree = Layerwise().learning_rate_multipliers(start.params, start.constants)
    return {path: np.squeeze(factor.value) for path, factor in tree.items()}


def test_multipliers_are_powers_of_the_decay(base, configure):
    actual = factors(base, configure("layerwise", method__decay=0.5))
    np.testing.assert_allclose(actual[Q], [0.125, 0.25, 0.5])
    assert actual[WORD] == 0.0625 and actual[POOLER] == 1 and actual["head/kernel"] == 1


def test_a_list_of_multipliers_takes_the_place_of_the_layers_own(base, configure):
    actual = factors(base, configure("layerwise", method__multipliers=(0, 0.5, 2), method__embeddings=0))
    np.testing.assert_allclose(actual[Q], [0, 0.5, 2])
    assert actual[WORD] == 0 and actual[POOLER] == 1


def test_a_multiplier_of_0_freezes(base, configure, pack_of):
    run = configure("layerwise", method__multipliers=(0.0, 0.5, 1.0), batch=8, steps=5, optim__weight_decay=0.3)
    layer = count({path: value for path, value in parameters(base).items() if "/layers/" in path}) // 3
    assert Layerwise().init(base, run).trainable == count(base) - layer
    trained = pack_of(base, [run]).train(base, 5).params(0)
    for path, value in parameters(base).items():
        if "/layers/" in path:
            np.testing.assert_array_equal(trained[path].value[0], value[0], err_msg=path)
            assert path.endswith("k/bias") or (np.asarray(trained[path].value[1:]) != np.asarray(value[1:])).any(), path


@pytest.mark.slow
def test_equal_multipliers_are_full_fine_tuning(base, configure, pack_of):
    shared = {"batch": 8, "steps": 5, "lr": 1e-3}
    layerwise = pack_of(base, [configure("layerwise", method__decay=1.0, **shared)]).train(base, 5)
    full = pack_of(base, [configure("full", **shared)]).train(base, 5)
    np.testing.assert_allclose(layerwise.metrics.loss, full.metrics.loss, rtol=1e-6)


@pytest.mark.slow
def test_the_norm_that_clips_gradients_leaves_out_what_is_frozen(base, configure, pack_of):
    shared = {"batch": 8, "steps": 1}
    frozen = configure("layerwise", method__multipliers=(0, 0, 0), method__embeddings=0, **shared)
    pack = pack_of(base, [frozen]).train(base, 1)
    everything = pack_of(base, [configure("full", **shared)]).train(base, 1)
    assert pack.metrics.grad_norm[0, 0] < 0.98 * everything.metrics.grad_norm[0, 0]


@pytest.mark.slow
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure):
    runs = [configure("layerwise", **run, steps=20, batch=8, dtype="float64") for run in RUNS]
    assert_packed_equals_alone(base, pack_of, runs, steps=20)


def test_another_number_of_multipliers_than_layers_is_refused(base, configure):
    abstract = jax.eval_shape(lambda: base)
    with pytest.raises(UserError, match=r"method.multipliers=\[1.0, 0.5\]: must have 3 numbers, one for each layer"):
        Layerwise().validate(abstract, configure("layerwise", method__multipliers=(1, 0.5)))
