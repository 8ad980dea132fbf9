"""Properties of every method on every family of models. The table in lora_jax/methods/README.md is of what holds here.

The cases and their exceptions, each with its reason, are in tests/helpers/method_cases.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, inputs_of, meaningful, model_of
from helpers.method_cases import CASES, shapes_of

from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods import METHODS, method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.train.pack import align
from lora_jax.weights.adapters import load_adapter, save_adapter

ALWAYS = ("bert", "llama")  # the families of every run of the tests; the others are slow
TOLERANCE = {"float32": 2e-5, "bfloat16": 6e-2}  # relative to the largest output


def grid(*dtypes: str, families=tuple(CONFIGS)):
    """Parametrizes a test over cases, families that are not refused, and dtypes."""
    return pytest.mark.parametrize(
        "name, family, dtype",
        [
            pytest.param(name, family, dtype, marks=[] if family in ALWAYS else [pytest.mark.slow])
            for name, case in CASES.items()
            for family in families
            if family not in case.refused
            for dtype in dtypes
        ],
    )


@functools.cache
def base_of(family: str, dtype: str):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), model_of(family))


def start_of(name: str, family: str, dtype: str, configure, **changes):
    """Returns the run of a case, its method and its initial parameters."""
    case = CASES[name]
    run = configure(case.method, **{"dtype": dtype, **case.settings, **changes})
    method = method_of(run.method)
    method.validate(base_of(family, dtype), run)
    return run, method, method.init(base_of(family, dtype), run)


def moved(params, size=0.02):
    """Returns parameters after something like an update: each element differs from its start."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape, scale=size), leaf.dtype), params)


def outputs(family: str, dtype: str, model):
    tokens, mask = inputs_of(family)
    forward = jax.jit(lambda model: model(tokens, mask, options=ComputeOptions(dtype)))
    return np.asarray(meaningful(family, forward(model), mask), np.float64)


def assert_close(actual, expected, dtype):
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


def head_of(init):
    return {path: value for path, value in init.params.items() if path.startswith("head/")}


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
    assert init.trainable == CASES[name].formula(shapes_of(base_of(family, dtype))) + count(head_of(init))


@grid("float64")
def test_gradients_in_a_pack_are_those_of_the_run_alone(name, family, dtype, configure):
    with jax.enable_x64(True):
        base = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model_of(family))
        tokens, mask = inputs_of(family)
        runs = [
            configure(CASES[name].method, **{"dtype": dtype, **settings})
            for settings in (CASES[name].settings, {**CASES[name].neighbour, "seed": 1})
        ]
        method = method_of(runs[0].method)
        assert method_of(runs[1].method) == method
        inits = [method.init(base, run) for run in runs]
        shifted = [moved(init.params) for init in inits]

        def loss(params, constants):
            model = graft(base, method.materialise(params, constants))
            result = meaningful(family, model(tokens, mask, options=ComputeOptions(dtype)), mask)
            return jnp.sum(jnp.sin(result * (1 + jnp.arange(result.shape[-1]))))

        aligned = align([init.__class__(s, init.constants, 0) for init, s in zip(inits, shifted, strict=True)])
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *((init.params, init.constants) for init in aligned))
        step = jax.jit(jax.value_and_grad(loss))
        losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(*stacked)
        for i, (init, params) in enumerate(zip(inits, shifted, strict=True)):
            expected_loss, expected = step(params, init.constants)
            np.testing.assert_allclose(losses[i], expected_loss, rtol=1e-9)
            for path, padded in gradients.items():
                mine = jax.tree.map(lambda leaf, i=i: leaf[i], padded)
                if path not in expected:
                    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(mine)), path
                    continue
                cut = mine if mine.size is None else mine.resize(expected[path].size)
                for actual, leaf in zip(jax.tree.leaves(cut), jax.tree.leaves(expected[path]), strict=True):
                    np.testing.assert_allclose(actual, leaf, rtol=1e-9, atol=1e-9 * (1 + np.abs(leaf).max()))
                total = sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(mine))
                kept = sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(cut))
                np.testing.assert_allclose(total, kept, rtol=1e-12, err_msg=f"{path}: the padding has a gradient")


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
    if not CASES[name].merges:
        with pytest.raises(UserError, match="cannot be merged"):
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
