"""Metrics by name. A new one is a function in a file here, and a row in METRICS."""

from collections.abc import Callable

import numpy as np

from lora_jax.metrics.classification import accuracy, cross_entropy

# From logits [examples, labels], labels [examples] and weights [examples] to one number.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "loss": cross_entropy,
}
