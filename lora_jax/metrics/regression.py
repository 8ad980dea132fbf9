"""Metrics of numbers."""

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.metric import Predictions


def mean_squared_error(predictions: Predictions) -> float:
    """Returns the mean over examples of (value - label)². Raises ValueError if the shapes disagree or are empty."""
    return float(squared_errors(predictions).mean())


def squared_errors(predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Returns (value - label)² of each example. Raises ValueError if the shapes disagree or are empty."""
    values, labels = np.asarray(predictions.values, np.float64), np.asarray(predictions.labels, np.float64)
    if values.shape != labels.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape}, labels {labels.shape}: must be one of each for every example")
    errors: np.ndarray = (values - labels) ** 2
    return errors
