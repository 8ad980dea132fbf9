"""Runs of the cases of tests/helpers/method_cases.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, model_of
from helpers.method_cases import CASES

from lora_jax.delta import parameters
from lora_jax.methods import method_of

ALWAYS = ("bert",)  # the families of every run of the tests; the others are slow
# The families of other dtypes than float32: an encoder, one with attention of its own, and a decoder.
ROUNDED = ("bert", "deberta", "llama")


def grid(*dtypes: str, families=tuple(CONFIGS), always=tuple(CASES)):
    """Parametrizes a test over cases, their families that are not refused, and dtypes.

    In float32 it has all families, in other dtypes those of ROUNDED. What is neither a family of ALWAYS nor a
    case of `always` is slow.
    """
    return pytest.mark.parametrize(
        "name, family, dtype",
        [
            pytest.param(name, family, dtype, marks=[] if family in ALWAYS and name in always else [pytest.mark.slow])
            for name, case in CASES.items()
            for family in families
            if family in case.families and family not in case.refused
            for dtype in dtypes
            if dtype == "float32" or family in ROUNDED
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
    return run, method, initial(method, base_of(family, dtype), run)


def initial(method, base, run):
    """Returns the initial parameters, with random gradients for a method that starts from gradients."""
    rng, weights = np.random.default_rng(0), parameters(base)
    gradients = {path: jnp.asarray(rng.normal(size=weights[path].shape)) for path in method.gradient_paths(base, run)}
    return method.init_from_gradients(base, run, gradients)


def moved(params, size=0.05):
    """Returns parameters after something like an update: each element differs from its start."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape, scale=size), leaf.dtype), params)


def head_of(init):
    return {path: value for path, value in init.params.items() if path.startswith("head/")}
