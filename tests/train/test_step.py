"""The train step: padding, the frozen base, compilation, and independence of the runs of a pack."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lora_jax.adapters import LowRank, OutputReplacement
from lora_jax.delta import parameters
from lora_jax.train.pack import packed_step
from lora_jax.train.step import train_step
from lora_jax.weights.fingerprint import fingerprint

# Packs of these settings and two other runs have the same shapes, so the tests share compiled steps.
LARGEST = {"rank": 8, "targets": "all", "lr": 5e-3, "batch": 8, "steps": 20, "optim__weight_decay": 0.1}
step_of = functools.cache(packed_step)
# For steps that one test alone compiles. XLA's optimisation does not matter there, so less of it saves time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_step(pack, base):
    arguments = (base, pack.state, pack.constants, pack.hyper, pack.example())
    return packed_step(pack.program).lower(*arguments).compile(QUICK)


def assert_bits(actual, expected):
    """Asserts that all leaves have the same bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def run(tree, i):
    """Returns the arrays of run `i` of a pack, on the host."""
    return jax.tree.map(lambda leaf: np.array(leaf[i]), tree)


# ---- padding


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lion"])
def test_padding_stays_exactly_zero(base, pack_of, configure, optim):
    smaller = [LARGEST | {"rank": 3, "targets": "q@0:1+v"}, LARGEST | {"rank": 5, "targets": "mlp", "seed": 4}]
    pack = pack_of(base, [configure(optim=optim, **settings) for settings in (LARGEST, *smaller)])
    pack.train(base, 20, step_of(pack.program) if optim == "adamw" else quick_step(pack, base))
    assert pack.metrics.live.all()
    moments = jax.tree.leaves(pack.state.opt_state, is_leaf=lambda x: isinstance(x, dict))
    moments = [leaf for leaf in moments if isinstance(leaf, dict)]
    assert len(moments) == {"adamw": 2, "sgd": 1, "lion": 1}[optim]

    def pair(tree, path, i):
        return (np.asarray(getattr(tree[path], part)[i]) for part in "ab")

    for i, rank in ((1, 3), (2, 5)):
        init = pack.inits[i].params
        for path, value in pack.state.params.items():
            if not isinstance(value, LowRank):
                continue
            for tree in (pack.state.params, *moments):
                a, b = pair(tree, path, i)
                if path not in init:
                    assert not a.any() and not b.any()
                    continue
                assert a.shape[-1] == b.shape[-2] == 8
                assert not a[..., rank:].any() and not b[:, rank:].any()
                adapted = range(1) if path.endswith("attn/q/adapter") else range(3)
                for layer in range(3):
                    assert a[layer, :, :rank].all() == (layer in adapted)
                    assert b[layer, :rank].all() == (layer in adapted)
    a, b = pair(pack.state.params, "backbone/layers/attn/o/adapter", 0)
    assert a.all() and b.all()  # the largest run trains every element, so zeros elsewhere are due to padding


# ---- the base


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_is_bit_identical_after_training(base, pack_of, configure, method):
    before = fingerprint(base)
    pack = pack_of(base, [configure(method, **LARGEST | {"seed": seed}) for seed in (0, 1, 2)])
    initial = run(pack.state.params, 0)
    pack.train(base, 5, step_of(pack.program) if method == "lora" else quick_step(pack, base))
    assert fingerprint(base) == before
    after = run(pack.state.params, 0)
    unchanged = [
        path
        for path in initial
        if any(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (initial[path], after[path])), strict=True))
    ]
    assert unchanged == (["backbone/pooler/bias"] if method == "full" else [])  # mean pooling does not use the pooler


def sums_over(tokens, jaxpr):
    """Yields the shapes of sums over `tokens` tokens, by product or scatter, in a jaxpr and the jaxprs within it."""
    for equation in jaxpr.eqns:
        name, shape = equation.primitive.name, equation.invars[0].aval.shape if equation.invars else ()
        summed = name == "scatter-add"
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(shape[axis] for axis in contracted) == tokens
        if summed:
            yield from (tuple(out.aval.shape) for out in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sums_over(tokens, inner)


def base_gradients(base, pack):
    """Returns the parameters of the base that have the shape of a sum over tokens, in any order of axes."""
    arguments = run((pack.state, pack.constants, pack.hyper, pack.example()), 0)
    traced = jax.make_jaxpr(functools.partial(train_step, pack.program))(base, *arguments)
    sums = {tuple(sorted(shape)) for shape in sums_over(arguments[-1].tokens.size, traced.jaxpr)}
    shapes = {path: leaf.shape for path, leaf in parameters(base).items() if not path.startswith("head/")}
    matrices = {path: shape[-2:] for path, shape in shapes.items() if path.endswith(("kernel", "embedding"))}
    return {path for path, shape in matrices.items() if tuple(sorted(shape)) in sums}


def test_lora_computes_no_gradient_of_the_base_and_full_fine_tuning_does(base, pack_of, configure):
    full = base_gradients(base, pack_of(base, [configure("full", **LARGEST)]))
    assert {f"backbone/layers/{site}/kernel" for site in ("attn/q", "attn/o", "mlp/up", "mlp/down")} <= full
    assert "backbone/embed/word/embedding" in full
    assert base_gradients(base, pack_of(base, [configure(**LARGEST)])) == set()


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lion", "adafactor"])
def test_the_optimizer_has_no_state_for_the_base(base, pack_of, configure, optim):
    pack = pack_of(base, [configure(optim=optim, rank=2, targets="q", batch=8)])
    state_shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(pack.state.opt_state) if leaf.ndim > 1 and leaf.size > 1]
    trained = [leaf.shape for leaf in jax.tree.leaves(pack.inits[0].params)]
    if optim == "adafactor":  # has statistics of rows and columns, or of whole arrays
        elements = sum(int(np.prod(shape)) for shape in state_shapes)
        assert elements < sum(int(np.prod(shape)) for shape in trained)
    else:
        assert sorted(state_shapes) == sorted(trained * {"adamw": 2, "sgd": 1, "lion": 1}[optim])


# ---- one program

compilations: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def _count_compilation(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


def test_the_step_compiles_once_per_length_for_all_runs(base, pack_of, configure):
    first = [LARGEST, LARGEST | {"rank": 2, "targets": "q", "seed": 7}]
    second = [
        LARGEST | {"rank": 4, "targets": "qv@1:", "lr": 1e-4, "steps": 3, "alpha": 1, "optim__clip_norm": 0.1},
        LARGEST | {"lr": 2e-2, "seed": 9, "optim__warmup": 0.5, "optim__b2": 0.9, "method__scaling": "rslora"},
    ]
    step, lengths = packed_step(pack_of(base, [configure(**LARGEST)]).program), set()
    for runs in (first, second):
        pack = pack_of(base, [configure(**settings) for settings in runs], buckets=(8, 12))
        for i in range(12):
            batch = pack.example(i)
            length, before = batch.tokens.shape[-1], len(compilations)
            pack.state, _ = step(base, pack.state, pack.constants, pack.hyper, batch)
            assert len(compilations) - before == (length not in lengths)
            lengths.add(length)
    assert lengths == {8, 12}


# ---- runs that end early


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_run_that_diverges_stops_and_does_not_change_the_others(base, pack_of, configure, lr):
    def pack_with(middle):
        runs = [
            LARGEST,
            LARGEST | {"seed": 1, "optim__warmup": 0.0} | middle,
            LARGEST | {"rank": 4, "targets": "qv", "seed": 2},
        ]
        return pack_of(base, [configure(**settings) for settings in runs])

    healthy, diverging = pack_with({}), pack_with({"lr": lr})
    states = [run(diverging.state, 1)]
    for _ in range(8):
        healthy.train(base, 1, step_of(healthy.program))
        diverging.train(base, 1, step_of(diverging.program))
        states.append(run(diverging.state, 1))
    for i in (0, 2):
        assert_bits(run(diverging.state, i), run(healthy.state, i))
        for name, values in diverging.metrics._asdict().items():
            np.testing.assert_array_equal(values[:, i], getattr(healthy.metrics, name)[:, i], err_msg=name)
    np.testing.assert_array_equal(diverging.state.live, [True, False, True])

    live = diverging.metrics.live[:, 1]
    done = int(live.sum())  # updates before divergence
    assert done == {1e6: 1, 1e30: 0}[lr] and not live[done:].any()
    assert states[-1].step == done
    loss, param_norm = diverging.metrics.loss[:, 1], diverging.metrics.param_norm[:, 1]
    assert not (loss[done] <= 10 * loss[0] and np.isfinite(param_norm[done]))  # true for nan too
    for state in states[done:]:
        assert_bits(state._replace(live=None, first_loss=None), states[done]._replace(live=None, first_loss=None))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].params))


def test_a_last_update_that_is_not_finite_is_seen(base, pack_of, configure):
    """No later loss would show it."""
    pack = pack_of(base, [configure(**LARGEST | {"seed": seed, "steps": 2}) for seed in (0, 1)])
    pack.train(base, 1, step_of(pack.program))
    before = run(pack.state, 1)
    pack.hyper = pack.hyper._replace(lr=pack.hyper.lr.at[1].set(jnp.inf))
    pack.train(base, 1, step_of(pack.program))
    np.testing.assert_array_equal(pack.state.live, [True, False])
    assert_bits(run(pack.state, 1)._replace(live=None), before._replace(live=None))


def test_a_run_whose_first_loss_is_nan_does_not_change(base, pack_of, configure):
    pack = pack_of(base, [configure(**LARGEST | {"seed": seed}) for seed in (0, 1, 2)])
    params = dict(pack.state.params)
    params["head/bias"] = OutputReplacement(params["head/bias"].value.at[1].set(jnp.nan))
    pack.state = pack.state._replace(params=params)
    before = run(pack.state, 1)
    pack.train(base, 3, step_of(pack.program))
    assert np.isnan(pack.metrics.loss[:, 1]).all() and np.isfinite(pack.metrics.loss[:, [0, 2]]).all()
    np.testing.assert_array_equal(pack.state.live, [True, False, True])
    assert_bits(run(pack.state, 1)._replace(live=None), before._replace(live=None))


def test_runs_of_a_pack_may_have_different_lengths(base, pack_of, configure):
    short = configure(**LARGEST | {"steps": 5, "seed": 3})
    pack = pack_of(base, [configure(**LARGEST), short, configure(**LARGEST | {"steps": 10, "seed": 4})])
    alone = pack_of(base, [short])
    alone.train(base, 5, quick_step(alone, base))
    pack.train(base, 5, step_of(pack.program))
    ended = run(pack.state, 1)
    pack.train(base, 5, step_of(pack.program))
    np.testing.assert_array_equal(pack.state.step, [10, 5, 10])
    assert pack.state.live.all()
    assert_bits(run(pack.state, 1), ended)
    for one, other in zip(jax.tree.leaves(pack.params(1)), jax.tree.leaves(alone.params(0)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(pack.metrics.lr[:5, 1], alone.metrics.lr[:, 0])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_on_a_cpu_bfloat16_narrows_products_and_nothing_else(base, pack_of, configure, method):
    wide, narrow = (
        pack_of(base, [configure(method, **LARGEST | {"seed": seed}, dtype=dtype) for seed in (0, 1)])
        for dtype in ("float32", "bfloat16")
    )
    assert narrow.program.dtype == "float32"
    for pack in (wide, narrow):
        pack.train(base, 10, quick_step(pack, base))
    # Half of bfloat16's last place is 0.2% of a value.
    np.testing.assert_allclose(narrow.metrics.loss, wide.metrics.loss, rtol=0.01)
    assert (np.asarray(narrow.metrics.loss) != np.asarray(wide.metrics.loss)).all()


def test_unrolled_layers_compute_the_same_and_compute_nothing_again(base, pack_of, configure):
    looped, unrolled = (
        pack_of(base, [configure(**LARGEST, model__remat="dots", compile__layers=layers)])
        for layers in ("default", "unrolled")
    )
    assert not looped.program.unroll and looped.program.remat == "dots"
    assert unrolled.program == looped.program.unrolled()
    assert (unrolled.program.unroll, unrolled.program.remat) == (True, "none")
    for pack in (looped, unrolled):
        pack.train(base, 5, quick_step(pack, base))
    np.testing.assert_allclose(looped.metrics.loss, unrolled.metrics.loss, rtol=1e-5)
