"""Losses of sentence embeddings and their gradients, against the formulas of sentence-transformers in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.train.losses import cosine_squared_error, multiple_negatives_ranking

torch = pytest.importorskip("torch")

ROWS, WIDTH = 6, 16


def ranking(embeddings):
    """MultipleNegativesRankingLoss.forward, with its default scale of 20 and cosine similarity."""
    anchors, candidates = embeddings[:, 0], torch.cat([embeddings[:, i] for i in range(1, embeddings.shape[1])])
    normalised = (torch.nn.functional.normalize(part, p=2, dim=1) for part in (anchors, candidates))
    one, other = normalised
    return torch.nn.functional.cross_entropy(one @ other.T * 20.0, torch.arange(len(anchors)))


def similarity(embeddings, scores):
    """CosineSimilarityLoss.forward, with its default loss, MSELoss."""
    cosines = torch.cosine_similarity(embeddings[:, 0], embeddings[:, 1])
    return torch.nn.functional.mse_loss(cosines, scores)


def unit(embeddings):
    """What the head does."""
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


def assert_equal(ours, theirs, texts):
    embeddings = np.random.default_rng(0).normal(size=(ROWS, texts, WIDTH))
    with jax.enable_x64():
        loss, gradient = jax.value_and_grad(lambda x: ours(unit(x)).mean())(jnp.asarray(embeddings))
    tensor = torch.tensor(embeddings, requires_grad=True)
    expected = theirs(tensor)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("texts", [2, 3])
def test_multiple_negatives_ranking(texts):
    assert_equal(lambda x: multiple_negatives_ranking(x, jnp.arange(ROWS)), ranking, texts)


def test_cosine_similarity():
    scores = np.linspace(0, 1, ROWS)
    assert_equal(lambda x: cosine_squared_error(x, scores), lambda x: similarity(x, torch.tensor(scores)), 2)
