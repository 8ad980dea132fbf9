"""FT-Top-k: which layers train, how many parameters they have, and that runs of different k share a pack."""

import jax
import numpy as np
import pytest
from helpers.packed import assert_packed_equals_alone
from methods.test_counts import model_of as named_model

from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods.method import layer_parameters
from lora_jax.methods.top_layers import TopLayers

RUNS = [
    {"method__layers": 1, "lr": 1e-2, "seed": 3},
    {"method__layers": 3, "lr": 3e-3, "seed": 1, "optim__weight_decay": 0.3},
    {"method__layers": 2, "lr": 5e-3, "seed": 2, "optim__clip_norm": 0.1},
]


def test_the_papers_ft_top_2_has_two_blocks_of_gpt2_medium(configure):
    run = configure("top_layers", method__layers=2)
    start = jax.eval_shape(lambda base: TopLayers().init(base, run), named_model("gpt2_medium"))
    assert start.trainable == 2 * (12 * 1024**2 + 13 * 1024) == 25_192_448  # 25.19M in Table 3


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_only_the_last_layers_and_the_head_train(base, configure, layers):
    start = TopLayers().init(base, configure("top_layers", method__layers=layers))
    block = count(layer_parameters(base)) // 3
    assert start.trainable == layers * block + 32 * 7 + 7
    moved = jax.tree.map(lambda leaf: leaf + 1, start.params)
    model = parameters(graft(base, TopLayers().materialise(moved, start.constants)))
    merged = parameters(merge(base, TopLayers().materialise(moved, start.constants)))
    for path, value in parameters(base).items():
        np.testing.assert_array_equal(merged[path], model[path])
        if "/layers/" in path:
            np.testing.assert_array_equal(model[path][: 3 - layers], value[: 3 - layers], err_msg=path)
            np.testing.assert_array_equal(model[path][3 - layers :], value[3 - layers :] + 1, err_msg=path)
        elif not path.startswith("head/"):
            np.testing.assert_array_equal(model[path], value, err_msg=path)


@pytest.mark.slow
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure):
    runs = [configure("top_layers", **run, steps=20, batch=8, dtype="float64") for run in RUNS]
    assert_packed_equals_alone(base, pack_of, runs, steps=20)


def test_more_layers_than_the_model_has_are_refused(base, configure):
    with pytest.raises(UserError, match=r"method.layers=4: must be at most 3, as many layers as this model has"):
        TopLayers().validate(base, configure("top_layers", method__layers=4))
