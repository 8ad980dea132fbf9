"""Metrics of classification, in numpy and float64. Rows of weight 0 do not count, whatever they hold."""

import numpy as np
from jaxtyping import Float, Int


def accuracy(
    logits: Float[np.ndarray, "examples labels"],
    labels: Int[np.ndarray, " examples"],
    weights: Float[np.ndarray, " examples"],
) -> float:
    """The weighted share of examples whose largest logit is their label's. A row with a NaN in it is wrong.

    Raises ValueError if the shapes disagree, a label is out of range, or no example has weight.
    """
    rows, labels, weights = _counting(logits, labels, weights)
    right = (rows.argmax(-1) == labels) & ~np.isnan(rows).any(-1)
    return float(right @ weights / weights.sum())


def cross_entropy(
    logits: Float[np.ndarray, "examples labels"],
    labels: Int[np.ndarray, " examples"],
    weights: Float[np.ndarray, " examples"],
) -> float:
    """The weighted mean of -log softmax(logits)[label], in nats. Logits of any finite size give a finite loss.

    NaN if a row holds NaN or +infinity. Raises ValueError as `accuracy` does.
    """
    rows, labels, weights = _counting(logits, labels, weights)
    with np.errstate(invalid="ignore"):
        shifted = rows - rows.max(-1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(rows)), labels]
    return float(losses @ weights / weights.sum())


def scores(logits: Float[np.ndarray, "examples labels"], labels: Int[np.ndarray, " examples"]) -> dict[str, float]:
    """Both figures, every example counting once. Raises ValueError as `accuracy` does."""
    ones = np.ones(len(labels))
    return {"accuracy": accuracy(logits, labels, ones), "loss": cross_entropy(logits, labels, ones)}


def _counting(logits, labels, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, labels, weights = np.asarray(logits, np.float64), np.asarray(labels), np.asarray(weights, np.float64)
    if logits.ndim != 2 or not labels.shape == weights.shape == logits.shape[:1]:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}, weights {weights.shape}: shapes disagree")
    counts = weights > 0
    if not counts.any():
        raise ValueError("no example has weight")
    rows, labels = logits[counts], labels[counts]
    if labels.min() < 0 or labels.max() >= rows.shape[-1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()}, but {rows.shape[-1]} logits")
    return rows, labels, weights[counts]
