"""The train step: what it may touch, what it compiles, and that no run of a pack can harm another."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lora_jax.adapters import LowRank
from lora_jax.delta import parameters
from lora_jax.train.pack import packed_step
from lora_jax.train.step import train_step
from lora_jax.weights.load import fingerprint

# Every pack that is made of this and two others has the same shapes, so the tests share compiled steps.
WIDE = {"rank": 8, "targets": "all", "lr": 5e-3, "batch": 8, "steps": 20, "optim__weight_decay": 0.1}
step_of = functools.cache(packed_step)
# Where a step is compiled for one test alone, how well XLA optimises it does not matter, and the time it takes does.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_step(pack, base):
    arguments = (base, pack.state, pack.constants, pack.hyper, pack.example())
    return packed_step(pack.program).lower(*arguments).compile(QUICK)


def assert_bits(got, expected):
    """Same bits, leaf by leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def run(tree, i):
    """One run's part of a pack's arrays, on the host."""
    return jax.tree.map(lambda leaf: np.array(leaf[i]), tree)


# ---- padding


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lion"])
def test_padding_stays_exactly_zero(base, pack_of, configure, optim):
    narrow = [WIDE | {"rank": 3, "targets": "q@0:1+v"}, WIDE | {"rank": 5, "targets": "mlp", "seed": 4}]
    pack = pack_of(base, [configure(optim=optim, **settings) for settings in (WIDE, *narrow)])
    pack.train(base, 20, step_of(pack.program) if optim == "adamw" else quick_step(pack, base))
    assert pack.metrics.live.all()
    moments = jax.tree.leaves(pack.state.opt_state, is_leaf=lambda x: isinstance(x, dict))
    moments = [leaf for leaf in moments if isinstance(leaf, dict)]
    assert len(moments) == {"adamw": 2, "sgd": 1, "lion": 1}[optim]

    def pair(tree, path, i):
        return (np.asarray(getattr(tree[path], part)[i]) for part in "ab")

    for i, rank in ((1, 3), (2, 5)):
        own = pack.inits[i].params
        for path, value in pack.state.params.items():
            if not isinstance(value, LowRank):
                continue
            for tree in (pack.state.params, *moments):
                a, b = pair(tree, path, i)
                if path not in own:
                    assert not a.any() and not b.any()
                    continue
                assert a.shape[-1] == b.shape[-2] == 8
                assert not a[..., rank:].any() and not b[:, rank:].any()
                adapted = range(1) if path.endswith("attn/q/adapter") else range(3)
                for layer in range(3):
                    assert a[layer, :, :rank].all() == (layer in adapted)
                    assert b[layer, :rank].all() == (layer in adapted)
    a, b = pair(pack.state.params, "backbone/layers/attn/o/adapter", 0)
    assert a.all() and b.all()  # the widest run uses all there is, so zeros elsewhere say something


# ---- the base


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_is_bit_identical_after_training(base, pack_of, configure, method):
    before = fingerprint(base)
    pack = pack_of(base, [configure(method, **WIDE | {"seed": seed}) for seed in (0, 1, 2)])
    initial = run(pack.state.params, 0)
    pack.train(base, 5, step_of(pack.program) if method == "lora" else quick_step(pack, base))
    assert fingerprint(base) == before
    after = run(pack.state.params, 0)
    unmoved = [
        path
        for path in initial
        if any(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (initial[path], after[path])), strict=True))
    ]
    assert unmoved == (["backbone/pooler/bias"] if method == "full" else [])  # mean pooling has no use for a pooler


def sums_over(tokens, jaxpr):
    """The shapes that sums over so many tokens yield, by product or scatter, in a jaxpr and all those within it."""
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
    """Which parameters of the base some sum over tokens has the shape of, whatever the order of axes."""
    arguments = run((pack.state, pack.constants, pack.hyper, pack.example()), 0)
    traced = jax.make_jaxpr(functools.partial(train_step, pack.program))(base, *arguments)
    yields = {tuple(sorted(shape)) for shape in sums_over(arguments[-1].tokens.size, traced.jaxpr)}
    shapes = {path: leaf.shape for path, leaf in parameters(base).items() if not path.startswith("head/")}
    matrices = {path: shape[-2:] for path, shape in shapes.items() if path.endswith(("kernel", "embedding"))}
    return {path for path, shape in matrices.items() if tuple(sorted(shape)) in yields}


def test_lora_computes_no_gradient_of_the_base_and_full_fine_tuning_does(base, pack_of, configure):
    full = base_gradients(base, pack_of(base, [configure("full", **WIDE)]))
    assert {f"backbone/layers/{site}/kernel" for site in ("attn/q", "attn/o", "mlp/up", "mlp/down")} <= full
    assert "backbone/embed/word/embedding" in full
    assert base_gradients(base, pack_of(base, [configure(**WIDE)])) == set()


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lion", "adafactor"])
def test_the_optimizer_holds_nothing_for_the_base(base, pack_of, configure, optim):
    pack = pack_of(base, [configure(optim=optim, rank=2, targets="q", batch=8)])
    held = [leaf.shape[1:] for leaf in jax.tree.leaves(pack.state.opt_state) if leaf.ndim > 1 and leaf.size > 1]
    trained = [leaf.shape for leaf in jax.tree.leaves(pack.inits[0].params)]
    if optim == "adafactor":  # rows and columns of what is trained, or the whole of it
        numbers = sum(int(np.prod(shape)) for shape in held)
        assert numbers < sum(int(np.prod(shape)) for shape in trained)
    else:
        assert sorted(held) == sorted(trained * {"adamw": 2, "sgd": 1, "lion": 1}[optim])


# ---- one program

compilations: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def _note(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


def test_the_step_compiles_once_per_length_whatever_the_runs(base, pack_of, configure):
    first = [WIDE, WIDE | {"rank": 2, "targets": "q", "seed": 7}]
    second = [
        WIDE | {"rank": 4, "targets": "qv@1:", "lr": 1e-4, "steps": 3, "alpha": 1, "optim__clip_norm": 0.1},
        WIDE | {"lr": 2e-2, "seed": 9, "optim__warmup": 0.5, "optim__b2": 0.9, "method__scaling": "rslora"},
    ]
    step, lengths = packed_step(pack_of(base, [configure(**WIDE)]).program), set()
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
def test_a_run_that_diverges_stops_and_leaves_its_neighbours_to_the_bit(base, pack_of, configure, lr):
    def pack_with(middle):
        runs = [WIDE, WIDE | {"seed": 1, "optim__warmup": 0.0} | middle, WIDE | {"rank": 4, "targets": "qv", "seed": 2}]
        return pack_of(base, [configure(**settings) for settings in runs])

    healthy, sick = pack_with({}), pack_with({"lr": lr})
    states = []
    for _ in range(8):
        healthy.train(base, 1, step_of(healthy.program))
        sick.train(base, 1, step_of(sick.program))
        states.append(run(sick.state, 1))
    for i in (0, 2):
        assert_bits(run(sick.state, i), run(healthy.state, i))
        for name, values in sick.metrics._asdict().items():
            np.testing.assert_array_equal(values[:, i], getattr(healthy.metrics, name)[:, i], err_msg=name)
    np.testing.assert_array_equal(sick.state.live, [True, False, True])

    alive = sick.metrics.live[:, 1]
    done = int(alive.sum())  # updates that were sound, after which nothing moves
    assert 1 <= done < 8 and not alive[done:].any()
    assert states[-1].step == done
    assert not sick.metrics.loss[done, 1] <= 10 * sick.metrics.loss[0, 1]  # or it is nan
    for state in states[done:]:
        assert_bits(state._replace(live=None), states[done - 1]._replace(live=None))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].params))


def test_a_run_whose_loss_is_nan_from_the_start_never_moves(base, pack_of, configure):
    pack = pack_of(base, [configure(**WIDE | {"seed": seed}) for seed in (0, 1, 2)])
    params = dict(pack.state.params)
    params["head/bias"] = params["head/bias"].at[1].set(jnp.nan)
    pack.state = pack.state._replace(params=params)
    before = run(pack.state, 1)
    pack.train(base, 3, step_of(pack.program))
    assert np.isnan(pack.metrics.loss[:, 1]).all() and np.isfinite(pack.metrics.loss[:, [0, 2]]).all()
    np.testing.assert_array_equal(pack.state.live, [True, False, True])
    assert_bits(run(pack.state, 1)._replace(live=None), before._replace(live=None))


def test_runs_of_a_pack_may_be_of_different_length(base, pack_of, configure):
    short = configure(**WIDE | {"steps": 5, "seed": 3})
    pack = pack_of(base, [configure(**WIDE), short, configure(**WIDE | {"steps": 10, "seed": 4})])
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
