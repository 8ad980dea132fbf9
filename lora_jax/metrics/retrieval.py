"""Metrics of retrieval: of how documents are ranked for queries.

Documents rank by score, largest first. Of equal scores the earlier document ranks higher. A NaN ranks last. Each
function returns a value for every query with a relevant document, in order. Queries without one are left out.
"""

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.metric import Predictions


def recall(cutoff: int, predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Returns the share of each query's relevant documents that are among its first `cutoff`."""
    relevant = ranked_relevance(predictions) > 0
    shares: np.ndarray = relevant[:, :cutoff].sum(-1) / relevant.sum(-1)
    return shares


def ndcg(cutoff: int, predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Returns each query's normalised discounted cumulative gain at `cutoff`, from 0 to 1.

    The gain of a document is its relevance, its discount log2(rank + 1) (Järvelin and Kekäläinen, 2002, in the form of
    trec_eval's ndcg_cut, which BEIR uses). The sum over the first `cutoff` documents is divided by that of the best
    order of all documents.
    """
    gains = ranked_relevance(predictions)
    ideal = -np.sort(-gains, axis=-1)
    discounts = np.log2(np.arange(gains.shape[-1]) + 2)[:cutoff]
    shares: np.ndarray = (gains[:, :cutoff] / discounts).sum(-1) / (ideal[:, :cutoff] / discounts).sum(-1)
    return shares


def ranked_relevance(predictions: Predictions) -> Float[np.ndarray, "queries documents"]:
    """Returns the relevance of the documents in the order of their ranks, for each query with a relevant document.

    Raises ValueError if the shapes disagree, a relevance is negative or not finite, or no query has a relevant
    document.
    """
    scores, relevance = np.asarray(predictions.scores, np.float64), np.asarray(predictions.relevance, np.float64)
    if scores.ndim != 2 or scores.shape != relevance.shape:
        raise ValueError(f"scores {scores.shape}, relevance {relevance.shape}: must be [queries, documents] both")
    if not (np.isfinite(relevance).all() and (relevance >= 0).all()):
        raise ValueError("a relevance is negative or not finite")
    answered = (relevance > 0).any(-1)
    if not answered.any():
        raise ValueError("no query has a relevant document")
    order = np.argsort(-scores[answered], axis=-1, kind="stable")
    ranked: np.ndarray = np.take_along_axis(relevance[answered], order, axis=-1)
    return ranked
