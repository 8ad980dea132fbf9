"""Metrics of classes, and the quantities per example that other metrics read."""

import numpy as np
from jaxtyping import Bool, Float, Int

from lora_jax.metrics.metric import Predictions


def accuracy(predictions: Predictions) -> float:
    """Returns the share of examples whose largest logit is their label's. A row of logits with a NaN is wrong."""
    return float(right_examples(predictions).mean())


def right_examples(predictions: Predictions) -> Bool[np.ndarray, " examples"]:
    """Returns whether each example's largest logit is its label's, of which accuracy is the mean."""
    return correct(*logits_and_labels(predictions))


def predicted_classes(logits: Float[np.ndarray, "examples classes"]) -> Int[np.ndarray, " examples"]:
    """Returns the class of each example's largest logit, and the number of classes for a row with a NaN."""
    predicted: np.ndarray = np.where(np.isnan(logits).any(-1), logits.shape[-1], logits.argmax(-1))
    return predicted


def matthews(predictions: Predictions) -> float:
    """Returns Matthews' correlation of labels and predicted classes, from -1 to 1.

    For two classes it is (TP·TN - FP·FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) (Matthews, 1975). For more it is R_K
    (Gorodkin, 2004, equation 2): the covariance of the two one-hot matrices over the root of the product of their
    variances. As in scikit-learn it is 0 where all labels, or all predictions, are one class. A row of logits with a
    NaN predicts a class of its own, which is no label's.
    """
    logits, labels = logits_and_labels(predictions)
    classes = logits.shape[-1] + 1
    predicted = predicted_classes(logits)
    n, agreements = len(labels), int((predicted == labels).sum())
    true_counts = np.bincount(labels, minlength=classes).astype(np.float64)
    predicted_counts = np.bincount(predicted, minlength=classes).astype(np.float64)
    covariance = agreements * n - true_counts @ predicted_counts
    variances = (n**2 - true_counts @ true_counts) * (n**2 - predicted_counts @ predicted_counts)
    return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0


def f1(predictions: Predictions) -> float:
    """Returns the F1 score: the harmonic mean of precision and recall, 2·TP / (2·TP + FP + FN).

    For two classes it is that of class 1, as GLUE scores MRPC and QQP. For more it is macro-averaged: the mean over the
    classes that occur among labels or predictions (scikit-learn's ``average="binary"`` and ``"macro"``). It is 0 where
    nothing is right. A row of logits with a NaN predicts no class.
    """
    logits, labels = logits_and_labels(predictions)
    predicted = np.where(np.isnan(logits).any(-1), -1, logits.argmax(-1))
    classes = [1] if logits.shape[-1] == 2 else sorted(set(labels.tolist()) | set(predicted[predicted >= 0].tolist()))
    scores = []
    for label in classes:
        hits = int(((predicted == label) & (labels == label)).sum())
        total = int((predicted == label).sum()) + int((labels == label).sum())
        scores.append(2 * hits / total if total else 0.0)
    return float(np.mean(scores))


def correct(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> Bool[np.ndarray, " examples"]:
    """Returns whether each example's largest logit is its label's; False for a row with a NaN."""
    right: np.ndarray = (logits.argmax(-1) == labels) & ~np.isnan(logits).any(-1)
    return right


def cross_entropy(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " examples"]:
    """Returns -log softmax(logits)[label] of each example, in nats.

    Logits of any finite size give a finite loss. A row with a NaN or +infinity gives NaN.
    """
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(-1, keepdims=True)
        losses: np.ndarray = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(logits)), labels]
    return losses


def logits_and_labels(
    predictions: Predictions,
) -> tuple[Float[np.ndarray, "examples classes"], Int[np.ndarray, " examples"]]:
    """Returns (logits, labels) in float64 and int.

    Raises ValueError if the shapes disagree, a label is out of range, or there is no example.
    """
    logits, labels = np.asarray(predictions.logits, np.float64), np.asarray(predictions.labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}: shapes disagree")
    if not len(labels):
        raise ValueError("no example to score")
    if labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()}, but {logits.shape[-1]} logits")
    return logits, labels
