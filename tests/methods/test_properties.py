"""Properties of every method on every family of models, which the table in lora_jax/methods/README.md lists.

The cases and their exceptions, each with its reason, are in tests/helpers/method_cases.py.
"""

import functools

import jax
import numpy as np
import pytest
from helpers.families import inputs_of, meaningful, model_of
from helpers.method_cases import CASES, shapes_of
from helpers.method_runs import ALWAYS, base_of, grid, head_of, moved, start_of

from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods import METHODS, method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.weights.adapters import load_adapter, save_adapter

TOLERANCE = {"float32": 2e-5, "bfloat16": 6e-2}  # relative to the largest output


@functools.partial(jax.jit, static_argnames="dtype")  # one function, so that tests share what is compiled
def forward(model, tokens, mask, *, dtype):
    return model(tokens, mask, options=ComputeOptions(dtype))


def outputs(family: str, dtype: str, model):
    tokens, mask = inputs_of(family)
    return np.asarray(meaningful(family, forward(model, tokens, mask, dtype=dtype), mask), np.float64)


def assert_close(actual, expected, dtype):
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


def test_every_method_has_a_case():
    assert {case.method for case in CASES.values()} == set(METHODS)


@grid("float32", "bfloat16")
def test_at_step_0_the_function_is_the_bases(name, family, dtype, configure):
    _, method, init = start_of(name, family, dtype, configure)
    base = base_of(family, dtype)
    expected = outputs(family, dtype, graft(base, head_of(init)))
    actual = outputs(family, dtype, graft(base, method.materialise(init.params, init.constants)))
    if CASES[name].start is None:
        assert_close(actual, expected, dtype)
    else:
        assert np.abs(actual - expected).max() > TOLERANCE[dtype] * np.abs(expected).max()


@grid("float32")
def test_only_the_delta_trains(name, family, dtype, configure):
    _, method, init = start_of(name, family, dtype, configure)
    base = base_of(family, dtype)
    before = {path: np.asarray(value) for path, value in parameters(base).items()}
    delta = method.materialise(moved(init.params), init.constants)
    adapted = parameters(graft(base, delta))
    for path, value in parameters(base).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
        if path not in delta:
            np.testing.assert_array_equal(adapted[path], value, err_msg=path)
    changed = outputs(family, dtype, graft(base, delta)) - outputs(family, dtype, graft(base, head_of(init)))
    assert np.abs(changed).max() > 0


@grid("float32")
def test_as_many_parameters_train_as_the_formula_says(name, family, dtype, configure):
    _, _, init = start_of(name, family, dtype, configure)
    assert init.trainable == CASES[name].formula.count(shapes_of(base_of(family, dtype))) + count(head_of(init))


@grid("float32", families=ALWAYS)
def test_saved_and_loaded_it_is_the_same(name, family, dtype, configure, tmp_path):
    run, _, init = start_of(name, family, dtype, configure)
    params = moved(init.params)
    save_adapter(
        tmp_path / "adapter", params, init.constants, base_source="x", base_fingerprint="y", config=run.model_dump()
    )
    loaded = load_adapter(tmp_path / "adapter", base_fingerprint="y")
    for expected, actual in ((params, loaded.params), (init.constants, loaded.constants)):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for leaf, other in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
            np.testing.assert_array_equal(leaf, other)


@grid("float32", "bfloat16")
def test_merged_it_computes_the_same_as_grafted(name, family, dtype, configure):
    _, method, init = start_of(name, family, dtype, configure)
    base = base_of(family, dtype)
    delta = method.materialise(moved(init.params), init.constants)
    if reason := CASES[name].unmerged:
        # A tied embedding is refused before what stands in its slot.
        with pytest.raises(UserError, match=f"cannot be merged: {reason}|the output layer too: it cannot be merged"):
            merge(base, delta)
        return
    merged = merge(base, delta)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    assert_close(outputs(family, dtype, merged), outputs(family, dtype, graft(base, delta)), dtype)


@pytest.mark.parametrize("name, family", [(name, family) for name, case in CASES.items() for family in case.refused])
def test_a_model_for_which_it_is_not_defined_is_refused(name, family, configure):
    run = configure(CASES[name].method, **CASES[name].settings)
    with pytest.raises(UserError, match=CASES[name].refused[family]):
        method_of(run.method).validate(model_of(family), run)
