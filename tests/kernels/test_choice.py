"""The choice between Pallas kernels and XLA, and what a whole step makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.bench import ours_step, shapes
from lora_jax.bench.cases import parse_case
from lora_jax.errors import UserError
from lora_jax.kernels import low_rank
from lora_jax.kernels.choice import uses_pallas
from lora_jax.train.pack import packed_step, stack
from lora_jax.train.step import program_of

HOPPER, A100, RTX_30, TURING = (9, 0), (8, 0), (8, 6), (7, 5)
FITS = {"dtype": jnp.bfloat16, "version": (0, 12, 0)}


def pallas_is_used(implementation, capability, **changes):
    return uses_pallas(implementation, **(FITS | changes), capability=lambda: capability)


@pytest.mark.parametrize(
    "capability, changes, reason",
    [
        (None, {}, "this device is no CUDA GPU"),
        (TURING, {}, r"this GPU's compute capability is not 8\.0 or 9\.0"),
        (RTX_30, {}, r"this GPU's compute capability is not 8\.0 or 9\.0"),
        (HOPPER, {"dtype": jnp.float32}, "dtype=float32 is not bfloat16 or float16"),
        (HOPPER, {"version": (0, 10, 2)}, r"jax 0\.10\.2 is older than 0\.11\.1\. Use auto or xla"),
    ],
)
def test_an_obstacle_makes_auto_use_xla_and_makes_pallas_an_error(capability, changes, reason):
    assert not pallas_is_used("auto", capability, **changes) and not pallas_is_used("xla", capability, **changes)
    with pytest.raises(UserError, match=f"model.kernel=pallas is not available: .*{reason}"):
        pallas_is_used("pallas", capability, **changes)


@pytest.mark.parametrize("changes", [{}, {"dtype": "float16"}, {"version": (0, 11, 1)}])
def test_without_obstacles_auto_uses_pallas(changes):
    assert pallas_is_used("auto", HOPPER, **changes) and pallas_is_used("pallas", A100, **changes)
    assert not pallas_is_used("xla", HOPPER, **changes)


def test_an_unknown_implementation_is_an_error():
    with pytest.raises(UserError, match=r"model\.kernel='triton': must be one of auto, pallas, xla"):
        pallas_is_used("triton", HOPPER)


def test_a_run_that_asks_for_pallas_on_a_cpu_is_refused_before_it_trains():
    with pytest.raises(UserError, match=r"model\.kernel=pallas is not available: this device is no CUDA GPU"):
        program_of(ours_step.run_of(parse_case({"kernel": "pallas"}), 0))


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_packed_steps_have_the_same_losses_with_pallas(monkeypatch, remat):
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    monkeypatch.setitem(shapes.SHAPES, "tiny", shapes.SHAPES["smollm2_135m"] | tiny)
    case = parse_case({"shape": "tiny", "batch": 4, "tokens": 64, "runs": 2, "ranks": [2, 5], "remat": remat})
    base = ours_step.base_of(case)
    calls, original = [], low_rank.products
    monkeypatch.setattr(low_rank, "products", lambda *given: calls.append(len(given[1])) or original(*given))

    def losses(kernel):
        on_a_gpu = {"kernel": kernel, "dtype": "bfloat16", "precision": "default"}
        program = dataclasses.replace(program_of(ours_step.run_of(case, 0)), **on_a_gpu)
        state, constants, hyper = stack(program, ours_step.inits_of(case, base), ours_step.hypers_of(case))
        step = packed_step(program)
        values = []
        for i in range(3):
            state, metrics = step(base, state, constants, hyper, ours_step.batch_of(case, i))
            values.append(metrics.loss)
        return np.asarray(jnp.stack(values)), jax.tree.map(np.asarray, state.params)

    plain, before = losses("xla")
    assert not calls
    fused, after = losses("pallas")
    assert set(calls) == {1, 2, 3}  # o and down; gate and up; q, k and v
    np.testing.assert_allclose(fused, plain, rtol=2e-4)
    for path, pair in after.items():  # the second run has rank 5, the first is padded
        assert not pair.a[0, ..., 2:].any() and not pair.b[0, ..., 2:, :].any(), path
        assert pair.b[1].any() and before[path].b[1].any()
