"""Gradients of a run in a pack are those of the run alone: for every method, beside a run of other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.families import inputs_of, meaningful, model_of
from helpers.method_cases import CASES
from helpers.method_runs import grid, initial, moved

from lora_jax.delta import graft
from lora_jax.methods import method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.train.pack import align


# What is padded, and how, does not depend on the family: an encoder, a decoder and images will do.
@grid("float64", families=("bert", "llama", "vit"), always=("lora", "full", "adapter_h", "prefix"))
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
        inits = [initial(method, base, run) for run in runs]
        shifted = [moved(init.params) for init in inits]

        def loss(params, constants, base):
            model = graft(base, method.materialise(params, constants))
            result = meaningful(family, model(tokens, mask, options=ComputeOptions(dtype)), mask)
            return jnp.sum(jnp.sin(result * (1 + jnp.arange(result.shape[-1]))))

        aligned = align([init.__class__(s, init.constants, 0) for init, s in zip(inits, shifted, strict=True)])
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *((init.params, init.constants) for init in aligned))
        step = jax.jit(jax.value_and_grad(loss))
        losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), (0, 0, None)))(*stacked, base)
        for i, (init, params) in enumerate(zip(inits, shifted, strict=True)):
            expected_loss, expected = step(params, init.constants, base)
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
