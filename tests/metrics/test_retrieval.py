"""Recall and nDCG against values worked out by hand."""

import math

import numpy as np
import pytest

from lora_jax.metrics import METRICS, Predictions

NAMES = ("recall_at_1", "recall_at_10", "ndcg_at_10")


def retrieved(scores, relevance):
    return Predictions(scores=np.asarray(scores, np.float32), relevance=np.asarray(relevance))


def values(scores, relevance):
    return tuple(METRICS[name].compute(retrieved(scores, relevance)) for name in NAMES)


def test_graded_relevance_by_hand():
    """Ranks: documents of relevance 0, 2, 1. The best order: 2, 1, 0."""
    gained = 2 / math.log2(3) + 1 / math.log2(4)
    best = 2 / math.log2(2) + 1 / math.log2(3)
    assert values([[0.1, 0.9, 0.5]], [[1, 0, 2]]) == pytest.approx((0, 1, gained / best))


def test_only_the_first_ten_documents_count():
    scores, relevance = -np.arange(12.0)[None], np.zeros((1, 12))
    relevance[0, [0, 9, 10]] = 1
    best = sum(1 / math.log2(rank + 1) for rank in (1, 2, 3))
    assert values(scores, relevance) == pytest.approx((1 / 3, 2 / 3, (1 + 1 / math.log2(11)) / best))
    relevance = np.ones((1, 12))
    assert values(scores, relevance) == pytest.approx((1 / 12, 10 / 12, 1))


def test_equal_scores_rank_in_the_order_of_documents_and_nan_last():
    assert values([[1, 1]], [[1, 0]])[0] == 1
    assert values([[1, 1]], [[0, 1]])[0] == 0
    assert values([[np.nan, -1e30]], [[1, 0]])[0] == 0


def test_queries_are_averaged_and_those_without_a_relevant_document_left_out():
    predictions = retrieved([[2, 1], [2, 1], [2, 1]], [[1, 0], [0, 0], [0, 3]])
    assert METRICS["recall_at_1"].compute(predictions) == 1 / 2
    assert METRICS["recall_at_1"].per_example(predictions).tolist() == [1, 0]
    assert METRICS["ndcg_at_10"].per_example(predictions).tolist() == pytest.approx([1, 1 / math.log2(3)])


@pytest.mark.parametrize("name", NAMES)
def test_rankings_that_cannot_be_scored_are_refused(name):
    compute = METRICS[name].compute
    with pytest.raises(ValueError, match=r"scores \(1, 2\), relevance \(1, 3\)"):
        compute(retrieved([[1, 2]], [[1, 0, 0]]))
    with pytest.raises(ValueError, match="negative or not finite"):
        compute(retrieved([[1, 2]], [[1, -1]]))
    with pytest.raises(ValueError, match="no query has a relevant document"):
        compute(retrieved([[1, 2]], [[0, 0]]))
