"""What a kind of task asks of a model: the head that it needs, the loss that it trains by, how it is scored."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.data.batches import Batch
from lora_jax.metrics import classification, language
from lora_jax.train.losses import cross_entropy, token_cross_entropy


@dataclasses.dataclass(frozen=True)
class Objective:
    """`loss(model, batch, **how)` is a number. `outputs(model, batch, **how)`, ``[batch, ...]``, is what scoring keeps
    of each example, and `scores(outputs, labels)` the figures from all of them, in float64 on the host.
    """

    head: Literal["classifier", "causal"]
    loss: Callable[..., Array]
    outputs: Callable[..., Array]
    scores: Callable[[np.ndarray, np.ndarray], dict[str, float]]


def _logits(model: Any, batch: Batch, **how) -> Array:
    return model(batch.tokens, batch.mask, **how)


def _classify(model: Any, batch: Batch, **how) -> Array:
    return cross_entropy(_logits(model, batch, **how), jnp.asarray(batch.labels)).mean()


def _token_losses(model: Any, batch: Batch, **how) -> tuple[Array, Array, Array]:
    hidden = model.backbone(batch.tokens, batch.mask, **how)
    return token_cross_entropy(model.logits, hidden, jnp.asarray(batch.labels))


def _write(model: Any, batch: Batch, **how) -> Array:
    # A mean over the batch's labelled tokens, not over its texts: long references weigh more, as they do elsewhere.
    losses, tokens, _ = _token_losses(model, batch, **how)
    return losses.sum() / tokens.sum()


def _likelihoods(model: Any, batch: Batch, **how) -> Array:
    losses, *counts = _token_losses(model, batch, **how)
    return jnp.stack([losses, *(count.astype(losses.dtype) for count in counts)], axis=-1)


OBJECTIVES = {
    "classification": Objective("classifier", _classify, _logits, classification.scores),
    "generation": Objective("causal", _write, _likelihoods, lambda rows, labels: language.token_scores(rows)),
}
