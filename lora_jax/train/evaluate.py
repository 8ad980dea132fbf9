"""Scoring every run of a pack on a split."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from lora_jax.data.batches import Batch, EvalBatches
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.step import Params


def evaluate(
    kind: str, outputs_of, base: nnx.Module, params: Params, constants: Any, batches: EvalBatches
) -> list[dict[str, float]]:
    """Each run's figures over `batches`: every example once, in float64 on the host.

    `kind` is the task's; `outputs_of` is ``pack.packed_outputs``; leaves of `params` and `constants` are
    ``[runs, ...]``.
    """
    rows = []
    for i in range(len(batches)):
        batch = batches[i]
        # The next batch is computed while this one's outputs are fetched: nothing waits inside the loop.
        rows.append(outputs_of(base, params, constants, jax.device_put(Batch(*batch[:3]))))
    outputs = batches.restore([np.asarray(row) for row in jax.device_get(rows)], axis=1)
    return [OBJECTIVES[kind].scores(run, batches.encoded.labels) for run in outputs]
