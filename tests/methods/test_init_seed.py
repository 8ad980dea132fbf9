"""`init_seed`: initial parameters apart from batches and dropout."""

import jax
import numpy as np
import pytest

from lora_jax.methods import METHODS, method_of


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("method", METHODS)
def test_initial_parameters_depend_on_the_initial_seed_alone(base, configure, method):
    def start(**seeds):
        run = configure(method, **seeds)
        return leaves(method_of(run.method).init(base, run).params)

    expected = start(seed=3)
    for one, other in zip(expected, start(seed=0, init_seed=3), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((one != other).any() for one, other in zip(expected, start(seed=3, init_seed=0), strict=True))


def test_batches_depend_on_the_seed_alone(base, configure, pack_of):
    runs = [configure(rank=2, targets="q", batch=8, seed=seed, init_seed=7) for seed in (0, 1)]
    pack = pack_of(base, runs)
    for one in leaves(pack.state.params):
        np.testing.assert_array_equal(one[0], one[1])
    assert (pack.example().tokens[0] != pack.example().tokens[1]).any()
