"""Scoring every run of a pack on a split."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from lora_jax.data.batches import Batch, EvalBatches
from lora_jax.delta import Delta
from lora_jax.metrics import METRICS


def evaluate(
    logits_of, base: nnx.Module, params: Delta, constants: Any, batches: EvalBatches
) -> list[dict[str, float]]:
    """Each run's metrics over `batches`: every example once, in float64 on the host.

    `logits_of` is ``pack.packed_logits``; leaves of `params` and `constants` are ``[runs, ...]``.
    """
    rows = []
    for i in range(len(batches)):
        batch = batches[i]
        # The next batch is computed while this one's logits are fetched: nothing waits inside the loop.
        rows.append(logits_of(base, params, constants, jax.device_put(Batch(*batch[:3]))))
    logits = batches.restore([np.asarray(row) for row in jax.device_get(rows)], axis=1)
    labels = batches.encoded.labels
    weights = np.ones(len(labels))
    return [{name: metric(run, labels, weights) for name, metric in METRICS.items()} for run in logits]
