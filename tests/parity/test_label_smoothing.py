"""Smoothed losses and their gradients, against torch's CrossEntropyLoss(label_smoothing=)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.train.losses import IGNORED, cross_entropy, token_cross_entropy

torch = pytest.importorskip("torch")

BATCH, TOKENS, CLASSES = 3, 11, 23


def of_tokens(logits, labels):
    losses, counts, _ = token_cross_entropy(lambda x: x, logits, labels, chunk=9, label_smoothing=0.1)
    return losses.sum() / counts.sum()


def of_rows(logits, labels):
    losses = cross_entropy(logits, jnp.maximum(labels, 0), 0.1)
    return losses.mean(where=labels != IGNORED)


@pytest.mark.parametrize("ours", [of_tokens, of_rows])
def test_cross_entropy_with_label_smoothing(ours):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(BATCH, TOKENS, CLASSES))
    labels = np.where(rng.random((BATCH, TOKENS)) < 0.3, IGNORED, rng.integers(0, CLASSES, (BATCH, TOKENS)))
    with jax.enable_x64():
        loss, gradient = jax.value_and_grad(ours)(jnp.asarray(logits), jnp.asarray(labels))
    tensor = torch.tensor(logits, requires_grad=True)
    targets = torch.tensor(np.where(labels == IGNORED, -100, labels))
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=-100)(
        tensor.flatten(0, 1), targets.flatten()
    )
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-9, atol=1e-12)
