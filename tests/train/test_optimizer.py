"""Optimizers and schedules, whose settings are traced numbers, against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.train.optimizer import decayed, hyper_of, learning_rate, optimizer

PARAMS = {
    "backbone/layers/attn/q/adapter": {"a": (2, 5, 3), "b": (2, 3, 5)},
    "backbone/layers/mlp/up/bias": (2, 5),
    "backbone/layers/attn_norm/scale": (2, 5),
    "head/kernel": (5, 4),
    "head/bias": (4,),
}
DECAYED = {
    "backbone/layers/attn/q/adapter": {"a": True, "b": True},
    "backbone/layers/mlp/up/bias": False,
    "backbone/layers/attn_norm/scale": False,
    "head/kernel": True,
    "head/bias": False,
}


def drawn(seed):
    rng = np.random.default_rng(seed)
    shapes, structure = jax.tree.flatten(PARAMS, is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes])


def theirs(name, run, rate):
    optim, clip = run.optim, optax.clip_by_global_norm(run.optim.clip_norm)
    decay = {"weight_decay": optim.weight_decay, "mask": DECAYED}
    if name == "adamw":
        return optax.chain(clip, optax.adamw(rate, optim.b1, optim.b2, optim.eps, **decay))
    if name == "lion":
        return optax.chain(clip, optax.lion(rate, optim.b1, optim.b2, **decay))
    decay_first = optax.add_decayed_weights(**decay)
    return optax.chain(clip, optax.trace(optim.b1), decay_first, optax.scale_by_learning_rate(rate))


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_updates_are_optaxs(configure, name, clip_norm):
    settings = {"optim__weight_decay": 0.1, "optim__b1": 0.8, "optim__b2": 0.95, "optim__eps": 1e-6}
    run = configure(optim=name, lr=0.02, steps=10, optim__clip_norm=clip_norm, optim__warmup=0.2, **settings)
    hyper = hyper_of(run, 10)
    rates = [float(learning_rate(hyper, jnp.int32(i), "linear")) for i in range(6)]
    reference = theirs(name, run, lambda count: jnp.asarray(rates)[count])

    @jax.jit
    def ours(grads, state, params, hyper, step):
        return optimizer(name, hyper, learning_rate(hyper, step, "linear")).update(grads, state, params)

    params, state = drawn(0), optimizer(name, hyper, jnp.zeros(())).init(drawn(0))
    expected, their_state = params, reference.init(params)
    for step in range(6):
        grads = drawn(step + 1)
        updates, state = ours(grads, state, params, hyper, jnp.int32(step))
        params = optax.apply_updates(params, updates)
        their_updates, their_state = reference.update(grads, their_state, expected)
        expected = optax.apply_updates(expected, their_updates)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "adafactor"])
def test_weight_decay_is_decoupled_and_spares_biases_and_scales(configure, name):
    assert decayed(drawn(0)) == DECAYED
    run = configure(optim=name, lr=0.1, optim__weight_decay=0.5)
    made = optimizer(name, hyper_of(run, 10), jnp.float32(0.1))
    params = drawn(0)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = made.update(still, made.init(params), params)
    for path, decays in DECAYED.items():
        expected = jax.tree.map(lambda x, on: -0.1 * 0.5 * x * on, params[path], decays)
        for one, other in zip(jax.tree.leaves(updates[path]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm(configure):
    made = optimizer("sgd", hyper_of(configure(optim="sgd", optim__clip_norm=0.5), 10), jnp.float32(1.0))
    grads, params = drawn(1), drawn(0)
    updates, _ = made.update(grads, made.init(params), params)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(one, -0.5 / norm * other, rtol=1e-5)


# ---- schedules


def rates(run, steps):
    hyper = hyper_of(run, steps)
    every = jnp.arange(steps + 5)
    return np.asarray(jax.vmap(lambda step: learning_rate(hyper, step, run.optim.schedule))(every))


@pytest.mark.parametrize("warmup, steps", [(0.0, 10), (0.06, 100), (0.3, 10), (0.9, 10), (0.04, 10), (0.5, 1)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_optaxs(configure, schedule, warmup, steps):
    run = configure(lr=3e-3, optim__schedule=schedule, optim__warmup=warmup)
    ups = round(warmup * steps)
    down = {
        "linear": optax.linear_schedule(3e-3, 0.0, max(steps - ups, 1)),
        "cosine": optax.cosine_decay_schedule(3e-3, max(steps - ups, 1)),
        "constant": optax.constant_schedule(3e-3),
    }[schedule]
    up = optax.linear_schedule(0.0, 3e-3, max(ups, 1))
    expected = [up(step) if step < ups else down(step - ups) for step in range(steps + 5)]
    np.testing.assert_allclose(rates(run, steps), expected, rtol=1e-6, atol=3e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_rise_to_lr_and_end_at_zero(configure, schedule):
    found = rates(configure(lr=3e-3, optim__schedule=schedule, optim__warmup=0.2), 20)
    assert found[0] == 0 and found[4] == np.float32(3e-3) == found.max() and abs(found[20]) < 1e-9
    assert (np.diff(found[:5]) > 0).all() and (np.diff(found[4:21]) < 0).all()


def test_hyper_holds_the_settings_as_arrays(configure):
    run = configure(lr=2e-3, seed=7, dropout=0.1, optim__weight_decay=0.1, optim__clip_norm=2.0, optim__warmup=0.1)
    hyper = hyper_of(run, 30)
    assert all(value.shape == () for value in hyper)
    values = {name: float(value) for name, value in hyper._asdict().items()}
    expected = {"lr": 2e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 2.0, "warmup": 3}
    assert values == pytest.approx(expected | {"steps": 30, "dropout": 0.1, "seed": 7})
