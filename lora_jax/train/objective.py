"""What a kind of task asks of a model: the head that it needs, the loss that it trains by, how it is scored."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.data.batches import Batch
from lora_jax.metrics import classification, language
from lora_jax.models.layers import Key
from lora_jax.models.options import ComputeOptions
from lora_jax.train.losses import cross_entropy, token_cross_entropy


@dataclasses.dataclass(frozen=True)
class Objective:
    """The head, the loss and the scores of a kind of task.

    Attributes:
      head: the head that the model needs.
      loss: ``loss(model, batch, dropout_rate=, key=, options=)`` is a number.
      outputs: ``outputs(model, batch, options=)``, ``[batch, ...]``, is what scoring keeps of each example.
      scores: ``scores(outputs, labels)`` are the figures from all examples, in float64 on the host.
    """

    head: Literal["classifier", "causal"]
    loss: Callable[..., Array]
    outputs: Callable[..., Array]
    scores: Callable[[np.ndarray, np.ndarray], dict[str, float]]


def _logits(model: Any, batch: Batch, *, options: ComputeOptions, dropout_rate=0.0, key: Key = None) -> Array:
    return model(batch.tokens, batch.mask, dropout_rate=dropout_rate, key=key, options=options)


def _classify(model: Any, batch: Batch, *, options: ComputeOptions, dropout_rate=0.0, key: Key = None) -> Array:
    logits = _logits(model, batch, options=options, dropout_rate=dropout_rate, key=key)
    return cross_entropy(logits, jnp.asarray(batch.labels)).mean()


def _token_losses(
    model: Any, batch: Batch, options: ComputeOptions, dropout_rate=0.0, key: Key = None
) -> tuple[Array, Array, Array]:
    hidden = model.backbone(batch.tokens, batch.mask, dropout_rate=dropout_rate, key=key, options=options)
    return token_cross_entropy(model.logits, hidden, jnp.asarray(batch.labels))


def _write(model: Any, batch: Batch, *, options: ComputeOptions, dropout_rate=0.0, key: Key = None) -> Array:
    # A mean over the batch's labelled tokens, not over its texts: long references weigh more, as they do elsewhere.
    losses, tokens, _ = _token_losses(model, batch, options, dropout_rate, key)
    return losses.sum() / tokens.sum()


def _likelihoods(model: Any, batch: Batch, *, options: ComputeOptions) -> Array:
    losses, *counts = _token_losses(model, batch, options)
    return jnp.stack([losses, *(count.astype(losses.dtype) for count in counts)], axis=-1)


OBJECTIVES = {
    "classification": Objective("classifier", _classify, _logits, classification.scores),
    "generation": Objective("causal", _write, _likelihoods, lambda rows, labels: language.token_scores(rows)),
}
