"""Rematerialisation saves memory and changes no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import equations, inputs_of, meaningful, model_of
from helpers.slow import sometimes

from lora_jax.adapters import LowRank
from lora_jax.delta import graft
from lora_jax.errors import UserError
from lora_jax.models import llama
from lora_jax.models.causal import CausalLM
from lora_jax.models.layers import REMAT
from lora_jax.models.options import ComputeOptions
from lora_jax.targets import place
from lora_jax.train.step import program_of
from lora_jax.weights.load import random


def pairs(model, runs: int) -> dict:
    """Returns LoRA of rank 2 on the linear layers of every block, for each of `runs` runs."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape, scale=0.2), jnp.float32)

    return {
        f"{path}/adapter": LowRank(
            draw(runs, *placed.rank.shape, placed.site.d_in, 2),
            draw(runs, *placed.rank.shape, 2, placed.site.d_out),
        )
        for path, placed in place(model, "all", 2, float).items()
    }


def gradient(model, mask, select, options):
    """Returns loss and gradient with respect to a pack of deltas, each run on texts of its own."""

    def loss(delta, tokens):
        return jnp.square(select(graft(model, delta)(tokens, mask, options=options))).mean()

    return jax.jit(jax.vmap(jax.value_and_grad(loss)))


@pytest.mark.parametrize("name", sometimes(("deberta", "gemma3"), "gemma3"))
def test_remat_changes_no_number(name):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    delta, tokens = pairs(model, 2), np.stack([tokens, tokens[::-1]])
    select = functools.partial(meaningful, name, mask=mask)
    results = {remat: gradient(model, mask, select, ComputeOptions(remat=remat))(delta, tokens) for remat in REMAT}
    for remat in ("dots", "layer"):
        for one, other in zip(jax.tree.leaves(results[remat]), jax.tree.leaves(results["none"]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * float(jnp.abs(other).max()))
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(results["none"]))


@pytest.mark.slow
def test_remat_takes_less_memory_and_dots_recomputes_no_linear_layer():
    config = llama.LlamaConfig(31, 64, 128, 4, 4, num_key_value_heads=2)
    model = random(jax.eval_shape(lambda: CausalLM(llama.Llama(config))), 0)
    delta, tokens = pairs(model, 2), np.zeros((2, 2, 64), np.int32)
    mask = np.ones((2, 64), bool)
    temporary, products = {}, {}
    for remat in REMAT:
        step = gradient(model, mask, lambda x: x, ComputeOptions(jnp.bfloat16, remat=remat))
        temporary[remat] = step.lower(delta, tokens).compile().memory_analysis().temp_size_in_bytes
        products[remat] = sum(map(is_forward_product, equations(jax.make_jaxpr(step)(delta, tokens).jaxpr)))
    assert temporary["none"] > 1.5 * temporary["dots"] and temporary["dots"] > 1.2 * temporary["layer"]
    # 7 in a layer, traced once for all layers, and the output layer. "layer" computes 6 again for the backward pass.
    assert products == {"none": 8, "dots": 8, "layer": 8 + 6}


def is_forward_product(equation) -> bool:
    """Returns whether it is x·W with a kernel of the base, without an axis of runs. The backward pass has g·Wᵀ."""
    if equation.primitive.name != "dot_general":
        return False
    (_, contracted), _ = equation.params["dimension_numbers"]
    shape = equation.invars[1].aval.shape
    return len(shape) == 2 and shape[0] in (64, 128) and tuple(contracted) == (0,)


def test_settings_reach_the_program(configure):
    program = program_of(configure(model__remat="dots", model__attention="xla"))
    assert (program.remat, program.attention) == ("dots", "xla")
    assert program.unroll != program_of(configure()).unroll  # on a CPU, remat needs the loop over layers
    with pytest.raises(UserError, match=r"model\.remat='most': must be 'none', 'dots' or 'layer'"):
        configure(model__remat="most")
