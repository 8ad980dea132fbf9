"""Optimizers and schedules with traced hyperparameters, compared with those of optax."""

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


def random_tree(seed):
    rng = np.random.default_rng(seed)
    shapes, structure = jax.tree.flatten(PARAMS, is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes])


def optax_optimizer(name, run, learning_rate):
    optim, clip = run.optim, optax.clip_by_global_norm(run.optim.clip_norm)
    decay = {"weight_decay": optim.weight_decay, "mask": DECAYED}
    if name == "adamw":
        return optax.chain(clip, optax.adamw(learning_rate, optim.b1, optim.b2, optim.eps, **decay))
    if name == "lion":
        return optax.chain(clip, optax.lion(learning_rate, optim.b1, optim.b2, **decay))
    decay_first = optax.add_decayed_weights(**decay)
    return optax.chain(clip, optax.trace(optim.b1), decay_first, optax.scale_by_learning_rate(learning_rate))


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_updates_equal_those_of_optax(configure, name, clip_norm):
    settings = {"optim__weight_decay": 0.1, "optim__b1": 0.8, "optim__b2": 0.95, "optim__eps": 1e-6}
    run = configure(optim=name, lr=0.02, steps=10, optim__clip_norm=clip_norm, optim__warmup=0.2, **settings)
    hyper = hyper_of(run, 10)
    learning_rates = [float(learning_rate(hyper, jnp.int32(i), "linear")) for i in range(6)]
    reference = optax_optimizer(name, run, lambda count: jnp.asarray(learning_rates)[count])

    @jax.jit
    def update(grads, state, params, hyper, step):
        return optimizer(name, hyper, learning_rate(hyper, step, "linear")).update(grads, state, params)

    params, state = random_tree(0), optimizer(name, hyper, jnp.zeros(())).init(random_tree(0))
    expected, reference_state = params, reference.init(params)
    for step in range(6):
        grads = random_tree(step + 1)
        updates, state = update(grads, state, params, hyper, jnp.int32(step))
        params = optax.apply_updates(params, updates)
        reference_updates, reference_state = reference.update(grads, reference_state, expected)
        expected = optax.apply_updates(expected, reference_updates)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "adafactor"])
def test_weight_decay_is_decoupled_and_excludes_biases_and_scales(configure, name):
    assert decayed(random_tree(0)) == DECAYED
    run = configure(optim=name, lr=0.1, optim__weight_decay=0.5)
    transformation = optimizer(name, hyper_of(run, 10), jnp.float32(0.1))
    params = random_tree(0)
    zero_grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(zero_grads, transformation.init(params), params)
    for path, decays in DECAYED.items():
        expected = jax.tree.map(lambda x, decay: -0.1 * 0.5 * x * decay, params[path], decays)
        for one, other in zip(jax.tree.leaves(updates[path]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm(configure):
    transformation = optimizer("sgd", hyper_of(configure(optim="sgd", optim__clip_norm=0.5), 10), jnp.float32(1.0))
    grads, params = random_tree(1), random_tree(0)
    updates, _ = transformation.update(grads, transformation.init(params), params)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(one, -0.5 / norm * other, rtol=1e-5)


# ---- schedules


def learning_rates(run, steps):
    hyper = hyper_of(run, steps)
    all_steps = jnp.arange(steps + 5)
    return np.asarray(jax.vmap(lambda step: learning_rate(hyper, step, run.optim.schedule))(all_steps))


@pytest.mark.parametrize("warmup, steps", [(0.0, 10), (0.06, 100), (0.3, 10), (0.9, 10), (0.04, 10), (0.5, 1)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_equal_those_of_optax(configure, schedule, warmup, steps):
    run = configure(lr=3e-3, optim__schedule=schedule, optim__warmup=warmup)
    warmup_steps = round(warmup * steps)
    down = {
        "linear": optax.linear_schedule(3e-3, 0.0, max(steps - warmup_steps, 1)),
        "cosine": optax.cosine_decay_schedule(3e-3, max(steps - warmup_steps, 1)),
        "constant": optax.constant_schedule(3e-3),
    }[schedule]
    up = optax.linear_schedule(0.0, 3e-3, max(warmup_steps, 1))
    expected = [up(step) if step < warmup_steps else down(step - warmup_steps) for step in range(steps + 5)]
    np.testing.assert_allclose(learning_rates(run, steps), expected, rtol=1e-6, atol=3e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rates_rise_to_lr_and_end_at_zero(configure, schedule):
    values = learning_rates(configure(lr=3e-3, optim__schedule=schedule, optim__warmup=0.2), 20)
    assert values[0] == 0 and values[4] == np.float32(3e-3) == values.max() and abs(values[20]) < 1e-9
    assert (np.diff(values[:5]) > 0).all() and (np.diff(values[4:21]) < 0).all()


def test_hyper_has_the_settings_as_arrays(configure):
    run = configure(lr=2e-3, seed=7, dropout=0.1, optim__weight_decay=0.1, optim__clip_norm=2.0, optim__warmup=0.1)
    hyper = hyper_of(run, 30)
    assert all(value.shape == () for value in hyper)
    values = {name: float(value) for name, value in hyper._asdict().items()}
    expected = {"lr": 2e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 2.0, "warmup": 3}
    assert values == pytest.approx(expected | {"steps": 30, "dropout": 0.1, "seed": 7})
