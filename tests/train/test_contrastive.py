"""Losses of sentence embeddings: against numpy in float64, within one run of a pack, and by group."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.packed import assert_packed_equals_alone
from helpers.slow import sometimes

from lora_jax.data.batches import TrainBatches
from lora_jax.data.sentence_pairs import EncodedTuples
from lora_jax.metrics import score
from lora_jax.models.heads import SentenceEncoder
from lora_jax.models.options import ComputeOptions
from lora_jax.train.losses import cosine_squared_error, multiple_negatives_ranking
from lora_jax.train.objective import OBJECTIVES, batch_loss

ROWS, WIDTH = 5, 8


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def reference(embeddings: np.ndarray, groups: np.ndarray, scale: float = 20.0) -> np.ndarray:
    """The loss of each row, one candidate at a time."""
    losses = []
    for i, (anchor, positive, *_) in enumerate(embeddings):
        candidates = [
            other[place]
            for j, other in enumerate(embeddings)
            for place in range(1, len(other))
            if not (place == 1 and j != i and groups[j] == groups[i])
        ]
        exponentials = np.exp([scale * anchor @ candidate for candidate in candidates])
        losses.append(-np.log(np.exp(scale * anchor @ positive) / exponentials.sum()))
    return np.array(losses)


def mean_ranking(embeddings, groups):
    return multiple_negatives_ranking(embeddings, groups).mean()


@pytest.mark.parametrize("texts", [2, 3])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [3, 1, 3, 3, 1], [7] * 5], ids=["own", "some equal", "all equal"])
def test_ranking_is_the_cross_entropy_over_all_candidates_of_other_groups(texts, groups):
    embeddings = unit(ROWS, texts, WIDTH)
    with jax.enable_x64():
        found = multiple_negatives_ranking(jnp.asarray(embeddings), jnp.asarray(groups))
        np.testing.assert_allclose(found, reference(embeddings, np.array(groups)), rtol=1e-12, atol=1e-14)
        gradient = jax.grad(lambda x: multiple_negatives_ranking(x, jnp.asarray(groups)).mean())(
            jnp.asarray(embeddings)
        )
        assert np.isfinite(gradient).all()
        if len(set(groups)) > 1:
            nudge = 1e-6 * unit(ROWS, texts, WIDTH, seed=1)
            change = (reference(embeddings + nudge, groups) - reference(embeddings - nudge, groups)).mean() / 2
            np.testing.assert_allclose((gradient * nudge).sum(), change, rtol=1e-6)


def test_the_positive_of_another_row_of_the_group_is_no_negative():
    """Two rows suit each other: as groups of their own each counts the other's positive against itself."""
    embeddings = np.repeat(unit(1, 1, WIDTH), 4, axis=0).reshape(2, 2, WIDTH)
    np.testing.assert_allclose(multiple_negatives_ranking(embeddings, jnp.array([0, 1])), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(multiple_negatives_ranking(embeddings, jnp.array([5, 5])), 0, atol=1e-5)


def test_squared_error_of_cosines():
    embeddings, scores = unit(ROWS, 2, WIDTH), np.linspace(0, 1, ROWS)
    expected = ((embeddings[:, 0] * embeddings[:, 1]).sum(-1) - scores) ** 2
    np.testing.assert_allclose(cosine_squared_error(jnp.asarray(embeddings), scores), expected, rtol=1e-4, atol=1e-6)


def test_losses_of_bfloat16_are_float32():
    embeddings = jnp.asarray(unit(ROWS, 3, WIDTH), jnp.bfloat16)
    assert multiple_negatives_ranking(embeddings, jnp.arange(ROWS)).dtype == jnp.float32
    assert cosine_squared_error(embeddings[:, :2], jnp.zeros(ROWS)).dtype == jnp.float32


# ---- objectives


@pytest.fixture(scope="module")
def encoder(base) -> SentenceEncoder:
    return SentenceEncoder(base.backbone)


@pytest.fixture(scope="module")
def triplets(texts) -> EncodedTuples:
    """Every text, the next and the one after that, cyclically. Their groups are those of the first texts' labels."""

    def rotated(by: int):
        rows = np.roll(np.arange(len(texts)), -by)
        lengths = texts.lengths[rows]
        tokens = np.concatenate([texts[int(row)] for row in rows])
        return dataclasses.replace(texts, tokens=tokens, offsets=np.concatenate([[0], np.cumsum(lengths)]))

    return EncodedTuples((texts, rotated(1), rotated(2)))


def test_each_text_is_embedded_by_itself(encoder, triplets):
    batch = triplets.padded(np.arange(4), 12, 0)
    objective = OBJECTIVES["contrastive_triplets"]
    embeddings = objective.outputs(encoder, batch, options=ComputeOptions())
    assert embeddings.shape == (4, 3, 32)
    for place, text in enumerate(triplets.texts):
        alone = text.padded(np.arange(4), 12, 0)
        np.testing.assert_allclose(embeddings[:, place], encoder(alone.tokens, alone.mask), atol=1e-6)
    loss = batch_loss(objective, encoder, batch, options=ComputeOptions())
    np.testing.assert_allclose(loss, reference(np.asarray(embeddings, np.float64), batch.labels).mean(), rtol=1e-4)


def test_predictions_are_cosines_even_of_embeddings_that_are_shorter():
    embeddings = np.array([[[1, 0], [3, 4], [0, 1]], [[0, 0.5], [1, 0], [0, 2]]], np.float32)
    scores = np.array([0.5, 0.25], np.float32)
    similar = OBJECTIVES["similarity"].predictions(embeddings[:, :2], scores, 0)
    assert similar.labels is scores and similar.values.tolist() == pytest.approx([0.6, 0])
    chosen = OBJECTIVES["contrastive_triplets"].predictions(embeddings, np.array([4, 9]), 0)
    assert chosen.logits.tolist() == [pytest.approx([0.6, 0]), pytest.approx([0, 1])]
    assert score(chosen, ["accuracy"]) == {"accuracy": 0.5}


# ---- packs


@pytest.mark.parametrize(
    "objective", sometimes(("similarity", "contrastive", "contrastive_triplets"), "contrastive_triplets")
)
def test_packed_equals_alone_so_negatives_are_of_the_same_run(encoder, triplets, configure, pack_of, objective):
    """A run of rank 2 beside one of rank 5 with another seed, and so other texts in its batch."""
    runs = [
        configure(rank=rank, seed=seed, lr=1e-2, batch=8, steps=4, dtype="float64", targets=targets)
        for rank, seed, targets in ((2, 0, "qv"), (5, 1, "all"))
    ]
    texts = EncodedTuples(triplets.texts[: 3 if objective == "contrastive_triplets" else 2])
    if objective == "similarity":
        first = dataclasses.replace(texts.texts[0], labels=texts.labels.astype(np.float32) / 7)
        texts = EncodedTuples((first, *texts.texts[1:]))

    def pack(base, runs):
        made = pack_of(base, runs)
        made.program = dataclasses.replace(made.program, objective=objective)
        made.batches = TrainBatches(texts, batch=8, buckets=(12,), seeds=[run.seed for run in runs])
        return made

    assert_packed_equals_alone(encoder, pack, runs, steps=4)


def test_only_adapters_train(encoder, configure, pack_of):
    pack = pack_of(encoder, [configure(rank=2)])
    assert pack.state.params and all(path.startswith("backbone/") for path in pack.state.params)
