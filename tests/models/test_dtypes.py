"""A model computes in the dtype that it is called with, whatever it is stored in; norms and softmax in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, equations, inputs_of, model_of, seen


def stored(model, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), model)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("params, compute", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_products_are_in_the_dtype_that_is_asked_for(name, params, compute):
    model, inputs = stored(model_of(name).backbone, params), inputs_of(name)[: 1 if name == "vit" else 2]
    jaxpr = jax.make_jaxpr(lambda model: model(*inputs, dtype=jnp.dtype(compute)))(model)
    assert [out.dtype for out in jaxpr.out_avals] == [compute]
    found = list(equations(jaxpr.jaxpr))
    products = {str(var.aval.dtype) for one in found if one.primitive.name == "dot_general" for var in one.invars}
    assert products == {compute}
    # What softmax and norms are made of.
    careful = [one for one in found if one.primitive.name in ("exp", "rsqrt", "reduce_sum", "reduce_max")]
    wide = {str(var.aval.dtype) for one in careful for var in one.invars if var.aval.ndim > 1}
    assert {one.primitive.name for one in careful} >= {"exp", "rsqrt"}
    assert not {dtype for dtype in wide if "float" in dtype} - {"float32"}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_float32_and_close_in_bfloat16(name):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    exact = seen(name, model(tokens, mask), mask)
    narrow = jax.jit(lambda model: model(tokens, mask, dtype=jnp.bfloat16))(model)
    assert narrow.dtype == jnp.float32
    assert float(jnp.abs(seen(name, narrow, mask) - exact).max()) < 0.1 * float(jnp.abs(exact).max())
    # Stored narrowly and computed widely: as far off as the weights are.
    rounded = stored(stored(model, jnp.bfloat16), jnp.float32)
    np.testing.assert_allclose(
        seen(name, stored(model, jnp.bfloat16)(tokens, mask), mask), seen(name, rounded(tokens, mask), mask), atol=1e-5
    )
