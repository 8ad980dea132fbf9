"""The losses, compared with optax on whole logits in float64. Chunked losses never compute whole logits."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.train.losses import IGNORED, cross_entropy, squared_error, token_cross_entropy

BATCH, TOKENS, WIDTH, VOCABULARY, CAP = 3, 17, 8, 97, 5.0
CHUNKS = [1, 3, 14, 25, 51, 512]  # of 51 positions; a chunk has at least one position of each row


@pytest.fixture(scope="module")
def inputs():
    """An embedding table, hidden states, labels, and weights of the rows' losses. The middle row has no label."""
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        labels = np.where(rng.random((BATCH, TOKENS)) < 0.3, IGNORED, rng.integers(0, VOCABULARY, (BATCH, TOKENS)))
        labels[1] = IGNORED
        table, hidden = rng.normal(size=(VOCABULARY, WIDTH)), rng.normal(size=(BATCH, TOKENS, WIDTH))
        yield jnp.asarray(table), jnp.asarray(hidden), jnp.asarray(labels), jnp.asarray([1.0, 2.0, 0.5])


def logits(table, hidden):
    logits = hidden @ table.T
    return CAP * jnp.tanh((logits - logits.mean(-1, keepdims=True)) / CAP)


def unchunked(table, hidden, labels, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(table, hidden), jnp.maximum(labels, 0))
    return (jnp.where(labels == IGNORED, 0, losses).sum(-1) * weights).sum()


def chunked(table, hidden, labels, weights, chunk, label_smoothing=0.0):
    losses, _, _ = token_cross_entropy(lambda h: logits(table, h), hidden, labels, chunk, label_smoothing)
    return (losses * weights).sum()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_are_those_of_whole_logits(inputs, chunk):
    result = jax.jit(jax.value_and_grad(chunked, (0, 1)), static_argnums=4)(*inputs, chunk)
    for leaf, expected in zip(
        jax.tree.leaves(result), jax.tree.leaves(jax.value_and_grad(unchunked, (0, 1))(*inputs)), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-12, atol=1e-14)


def smoothed(logits, labels, weights, smoothing):
    """The weighted sum of smoothed losses, and its gradient in the logits, by NumPy. Absent classes are -inf."""
    present = np.isfinite(logits)
    target = smoothing * present / present.sum(-1, keepdims=True)
    target[*np.indices(labels.shape), np.maximum(labels, 0)] += 1 - smoothing
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    chances = exponentials / exponentials.sum(-1, keepdims=True)
    losses = -(target * np.log(np.where(present, chances, 1))).sum(-1)
    weights = np.where(labels == IGNORED, 0, weights)
    return (losses * weights).sum(), (chances - target) * weights[..., None]


@pytest.mark.parametrize("classes", [VOCABULARY, 41])
@pytest.mark.parametrize("chunk", [3, 14, 512])
def test_smoothed_losses_are_those_of_numpy(inputs, chunk, classes):
    """Classes from the 41st on are absent in the second case, as where tasks share the shape of a head."""
    table, hidden, labels, weights = inputs
    labels = jnp.where(labels == IGNORED, labels, labels % classes)

    def loss(table, hidden):
        def logits_of(h):
            return jnp.where(jnp.arange(VOCABULARY) < classes, h @ table.T, -jnp.inf)

        losses, _, _ = token_cross_entropy(logits_of, hidden, labels, chunk, label_smoothing=0.1)
        return (losses * weights).sum()

    value, (to_table, to_hidden) = jax.jit(jax.value_and_grad(loss, (0, 1)))(table, hidden)
    table, hidden, labels = (np.asarray(x) for x in (table, hidden, labels))
    logits = np.where(np.arange(VOCABULARY) < classes, hidden @ table.T, -np.inf)
    expected, to_logits = smoothed(logits, labels, np.asarray(weights)[:, None], 0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(to_hidden, to_logits @ table, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(to_table, np.einsum("btv,btw->vw", to_logits, hidden), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("classes", [5, 3])
def test_smoothed_losses_of_a_classifier_are_those_of_numpy(classes):
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        logits = np.where(np.arange(5) < classes, rng.normal(size=(4, 5)), -np.inf)
        labels = np.array([0, 1, 2, 2])
        loss = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray(labels), 0.3).sum())
        value, gradient = loss(jnp.asarray(logits))
        expected, expected_gradient = smoothed(logits, labels, np.ones(4), 0.3)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-14)


def test_labelled_and_correct_tokens_are_counted(inputs):
    table, hidden, labels, _ = inputs
    best = logits(table, hidden).argmax(-1)
    labels = jnp.where((jnp.arange(TOKENS) % 3 == 0) & (labels != IGNORED), best, labels)
    losses, labelled, correct = jax.jit(lambda: token_cross_entropy(lambda h: logits(table, h), hidden, labels, 10))()
    np.testing.assert_array_equal(labelled, (labels != IGNORED).sum(-1))
    np.testing.assert_array_equal(correct, (labels == best).sum(-1))
    assert losses[1] == labelled[1] == correct[1] == 0 and correct[0] > 0


@pytest.mark.parametrize("batched", ["hidden", "table", "both"])
def test_packed_runs_have_the_losses_and_gradients_of_single_runs(inputs, batched):
    table, hidden, *rest = inputs
    scales = jnp.array([1.0, 0.5, 3.0])[:, None, None]
    tables = table * scales if batched != "hidden" else table
    hiddens = hidden * scales[..., None] if batched != "table" else hidden
    axes = (None if tables.ndim == 2 else 0, None if hiddens.ndim == 3 else 0)

    def packed(of):
        return jax.jit(jax.vmap(jax.value_and_grad(of, (0, 1)), in_axes=axes))(tables, hiddens)

    result = packed(lambda table, hidden: chunked(table, hidden, *rest, 9))
    expected = packed(lambda table, hidden: unchunked(table, hidden, *rest))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14), result, expected)


def test_bfloat16_is_summed_in_float32(inputs):
    table, hidden, labels, _ = inputs
    low_precision = [x.astype(jnp.bfloat16) for x in (table, hidden)]
    losses, _, _ = token_cross_entropy(lambda h: h @ low_precision[0].T, low_precision[1], labels, 9)
    expected, _, _ = token_cross_entropy(lambda h: h @ table.T, hidden, labels, 9)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    grads = jax.grad(lambda t: token_cross_entropy(lambda h: h @ t.T, low_precision[1], labels, 9)[0].sum())(
        low_precision[0]
    )
    assert grads.dtype == jnp.bfloat16


def sizes(jaxpr):
    """Yields the size of every array that a program computes, inside loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


def products(jaxpr) -> int:
    """Returns the number of matrix products in a program."""
    return sum(
        (equation.primitive.name == "dot_general")
        + sum(map(products, jax.extend.core.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


@pytest.mark.parametrize(
    ("trained", "expected", "label_smoothing"), [((1,), 2, 0.0), ((0, 1), 4, 0.0), ((0,), 4, 0.0), ((1,), 2, 0.1)]
)
def test_whole_logits_are_never_computed(trained, expected, label_smoothing):
    """For a frozen table the logits are computed once: one product for them, another for their gradient."""
    vocabulary, tokens, width = 5000, 256, 16
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((vocabulary, width), (2, tokens, width))]
    labels, weights = jnp.zeros((2, tokens), jnp.int32), jnp.ones(2)

    def program(of):
        return jax.jit(lambda table, hidden: jax.grad(of, trained)(table, hidden, labels, weights)).trace(*shapes)

    traced = program(lambda *arguments: chunked(*arguments, 32, label_smoothing))
    assert max(sizes(traced.jaxpr.jaxpr)) <= 32 * vocabulary < 2 * tokens * vocabulary
    assert products(traced.jaxpr.jaxpr) == expected
    temporary = traced.lower().compile().memory_analysis().temp_size_in_bytes
    assert (
        temporary < 4 * tokens * vocabulary < program(unchunked).lower().compile().memory_analysis().temp_size_in_bytes
    )


def test_losses_match_their_formulas():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 5)), np.array([0, 4, 2, 2])
    expected = -(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(4), labels]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-6)
    low_precision = cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels))
    assert low_precision.dtype == jnp.float32
    targets = rng.normal(size=(4, 5))
    errors = squared_error(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(errors, ((logits - targets) ** 2).mean(-1), rtol=1e-6)
