"""The losses, against optax over whole logits in float64; and that chunked ones never hold whole logits."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.train.losses import IGNORED, cross_entropy, squared_error, token_cross_entropy

BATCH, TOKENS, WIDTH, WORDS, CAP = 3, 17, 8, 97, 5.0
CHUNKS = [1, 3, 14, 25, 51, 512]  # of 51 positions: one of each row at least, and all of them at most


@pytest.fixture(scope="module")
def given():
    """A table, hidden states, labels and what each row's loss counts for; the middle row has no label."""
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        labels = np.where(rng.random((BATCH, TOKENS)) < 0.3, IGNORED, rng.integers(0, WORDS, (BATCH, TOKENS)))
        labels[1] = IGNORED
        table, hidden = rng.normal(size=(WORDS, WIDTH)), rng.normal(size=(BATCH, TOKENS, WIDTH))
        yield jnp.asarray(table), jnp.asarray(hidden), jnp.asarray(labels), jnp.asarray([1.0, 2.0, 0.5])


def logits(table, hidden):
    logits = hidden @ table.T
    return CAP * jnp.tanh((logits - logits.mean(-1, keepdims=True)) / CAP)


def whole(table, hidden, labels, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(table, hidden), jnp.maximum(labels, 0))
    return (jnp.where(labels == IGNORED, 0, losses).sum(-1) * weights).sum()


def chunked(table, hidden, labels, weights, chunk):
    losses, _, _ = token_cross_entropy(lambda h: logits(table, h), hidden, labels, chunk)
    return (losses * weights).sum()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_are_those_of_whole_logits(given, chunk):
    ours = jax.jit(jax.value_and_grad(chunked, (0, 1)), static_argnums=4)(*given, chunk)
    for own, theirs in zip(
        jax.tree.leaves(ours), jax.tree.leaves(jax.value_and_grad(whole, (0, 1))(*given)), strict=True
    ):
        np.testing.assert_allclose(own, theirs, rtol=1e-12, atol=1e-14)


def test_counts(given):
    table, hidden, labels, _ = given
    best = logits(table, hidden).argmax(-1)
    labels = jnp.where((jnp.arange(TOKENS) % 3 == 0) & (labels != IGNORED), best, labels)
    losses, labelled, right = jax.jit(lambda: token_cross_entropy(lambda h: logits(table, h), hidden, labels, 10))()
    np.testing.assert_array_equal(labelled, (labels != IGNORED).sum(-1))
    np.testing.assert_array_equal(right, (labels == best).sum(-1))
    assert losses[1] == labelled[1] == right[1] == 0 and right[0] > 0


@pytest.mark.parametrize("batched", ["hidden", "table", "both"])
def test_runs_packed_are_runs_alone(given, batched):
    table, hidden, *rest = given
    scales = jnp.array([1.0, 0.5, 3.0])[:, None, None]
    tables = table * scales if batched != "hidden" else table
    hiddens = hidden * scales[..., None] if batched != "table" else hidden
    axes = (None if tables.ndim == 2 else 0, None if hiddens.ndim == 3 else 0)

    def packed(of):
        return jax.jit(jax.vmap(jax.value_and_grad(of, (0, 1)), in_axes=axes))(tables, hiddens)

    ours = packed(lambda table, hidden: chunked(table, hidden, *rest, 9))
    theirs = packed(lambda table, hidden: whole(table, hidden, *rest))
    jax.tree.map(lambda own, other: np.testing.assert_allclose(own, other, rtol=1e-12, atol=1e-14), ours, theirs)


def test_bfloat16_is_summed_in_float32(given):
    table, hidden, labels, _ = given
    narrow = [x.astype(jnp.bfloat16) for x in (table, hidden)]
    losses, _, _ = token_cross_entropy(lambda h: h @ narrow[0].T, narrow[1], labels, 9)
    expected, _, _ = token_cross_entropy(lambda h: h @ table.T, hidden, labels, 9)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    grads = jax.grad(lambda t: token_cross_entropy(lambda h: h @ t.T, narrow[1], labels, 9)[0].sum())(narrow[0])
    assert grads.dtype == jnp.bfloat16


def sizes(jaxpr):
    """The size of every array that a program makes, with those inside its loops."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


def products(jaxpr) -> int:
    return sum(
        (equation.primitive.name == "dot_general")
        + sum(map(products, jax.extend.core.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


@pytest.mark.parametrize(("trained", "expected"), [((1,), 2), ((0, 1), 4), ((0,), 4)])
def test_whole_logits_never_exist(trained, expected):
    """Nor are they computed twice for a frozen table: one product makes them, another their gradient."""
    words, tokens, width = 5000, 256, 16
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((words, width), (2, tokens, width))]
    labels, weights = jnp.zeros((2, tokens), jnp.int32), jnp.ones(2)

    def program(of):
        return jax.jit(lambda table, hidden: jax.grad(of, trained)(table, hidden, labels, weights)).trace(*shapes)

    ours = program(lambda *given: chunked(*given, 32))
    assert max(sizes(ours.jaxpr.jaxpr)) <= 32 * words < 2 * tokens * words
    assert products(ours.jaxpr.jaxpr) == expected
    temporary = ours.lower().compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * tokens * words < program(whole).lower().compile().memory_analysis().temp_size_in_bytes


def test_losses_of_rows():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 5)), np.array([0, 4, 2, 2])
    expected = -(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(4), labels]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-6)
    narrow = cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels))
    assert narrow.dtype == jnp.float32
    targets = rng.normal(size=(4, 5))
    errors = squared_error(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(errors, ((logits - targets) ** 2).mean(-1), rtol=1e-6)
