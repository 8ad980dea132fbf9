"""A model computes in the dtype of its options, whatever dtype it is stored in; norms and softmax in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, equations, inputs_of, meaningful, model_of

from lora_jax.models.options import ComputeOptions


def stored(model, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), model)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("params, compute", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_matmuls_have_the_dtype_of_the_options(name, params, compute):
    model, inputs = stored(model_of(name).backbone, params), inputs_of(name)[: 1 if name == "vit" else 2]
    jaxpr = jax.make_jaxpr(lambda model: model(*inputs, options=ComputeOptions(compute)))(model)
    assert [out.dtype for out in jaxpr.out_avals] == [compute]
    all_equations = list(equations(jaxpr.jaxpr))
    products = {
        str(var.aval.dtype) for one in all_equations if one.primitive.name == "dot_general" for var in one.invars
    }
    assert products == {compute}
    # The operations of softmax and norms.
    float32_only = [one for one in all_equations if one.primitive.name in ("exp", "rsqrt", "reduce_sum", "reduce_max")]
    wide = {str(var.aval.dtype) for one in float32_only for var in one.invars if var.aval.ndim > 1}
    assert {one.primitive.name for one in float32_only} >= {"exp", "rsqrt"}
    assert not {dtype for dtype in wide if "float" in dtype} - {"float32"}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_float32_and_close_in_bfloat16(name):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    exact = meaningful(name, model(tokens, mask), mask)
    narrow = jax.jit(lambda model: model(tokens, mask, options=ComputeOptions(jnp.bfloat16)))(model)
    assert narrow.dtype == jnp.float32
    assert float(jnp.abs(meaningful(name, narrow, mask) - exact).max()) < 0.1 * float(jnp.abs(exact).max())
    # Stored in bfloat16 and computed in float32, only the weights are rounded.
    rounded = stored(stored(model, jnp.bfloat16), jnp.float32)
    np.testing.assert_allclose(
        meaningful(name, stored(model, jnp.bfloat16)(tokens, mask), mask),
        meaningful(name, rounded(tokens, mask), mask),
        atol=1e-5,
    )
