"""Objectives: the head, the loss and the predictions of each kind of task."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Required, TypedDict, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from lora_jax.data.batches import Batch
from lora_jax.data.tagged_words import group_by_text
from lora_jax.data.tokens import IGNORED
from lora_jax.metrics import Predictions
from lora_jax.metrics.classification import correct, cross_entropy
from lora_jax.models.layers import Key
from lora_jax.models.options import ComputeOptions
from lora_jax.train import losses

Head = Literal["classifier", "causal", "embedding", "token_classifier", "masked"]


class ModelCall(TypedDict, total=False):
    """The keyword arguments of a model's ``__call__``."""

    options: Required[ComputeOptions]
    dropout_rate: Float[Array, ""] | float
    key: Key


class Objective(Protocol):
    """The head, loss and predictions of one kind of task.

    `outputs` and `loss` run on the device, for one run. `predictions` runs on the host, in float64.

    Attributes:
      head: the head that `load_base` puts on the backbone.
      fields: the fields of `Predictions` that `predictions` fills.
      averaged: whether the mean of the outputs of several models is an output too.
    """

    head: ClassVar[Head]
    fields: ClassVar[frozenset[str]]
    averaged: ClassVar[bool]

    def head_outputs(self, labels: Sequence[str]) -> int | None:
        """Returns the number of outputs of the head, or None if the checkpoint determines it.

        Args:
          labels: the names of the task's labels.
        """

    def loss(self, outputs: Any, labels: Shaped[Array, "..."]) -> Float[Array, ""]:
        """Returns the mean loss of a batch, from its outputs and its labels. Training minimises it."""

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Any:
        """Returns the outputs that `predictions` reads: an array, or a NamedTuple of arrays, ``[batch, ...]``."""

    def predictions(self, outputs: Any, labels: Shaped[np.ndarray, "..."], names: Sequence[str]) -> Predictions:
        """Converts the outputs of all examples of a split, in order, to predictions.

        Args:
          outputs: what `outputs` returned, as arrays on the host.
          labels: the labels of the split, as they are encoded.
          names: the names of the task's labels. A head that tasks share may have more outputs.
        """


@dataclasses.dataclass(frozen=True)
class CrossEntropyObjective:
    """An objective whose loss is a cross-entropy over classes or tokens.

    Attributes:
      label_smoothing: as in `losses.cross_entropy`. Objectives that evaluate have none.
    """

    label_smoothing: float = 0.0


class Classification(CrossEntropyObjective):
    """One class for each example, a text or an image: the cross-entropy of a linear head's logits."""

    head: ClassVar[Head] = "classifier"
    fields: ClassVar[frozenset[str]] = frozenset({"labels", "logits", "losses", "tokens", "correct"})
    averaged: ClassVar[bool] = True

    def head_outputs(self, labels: Sequence[str]) -> int:
        return len(labels)

    def loss(self, outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
        return losses.cross_entropy(outputs, labels, self.label_smoothing).mean()

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Float[Array, "batch classes"]:
        return _head_outputs(model, batch, **call)

    def predictions(
        self, outputs: Float[np.ndarray, "examples outputs"], labels: Int[np.ndarray, " examples"], names: Sequence[str]
    ) -> Predictions:
        logits = np.asarray(outputs[:, : len(names)], np.float64)
        return Predictions(
            labels=labels,
            logits=logits,
            losses=cross_entropy(logits, labels),
            tokens=np.ones(len(labels), int),
            correct=correct(logits, labels),
        )


class Regression:
    """One number for each example: the squared error of a linear head's single output."""

    head: ClassVar[Head] = "classifier"
    fields: ClassVar[frozenset[str]] = frozenset({"labels", "values"})
    averaged: ClassVar[bool] = True

    def head_outputs(self, labels: Sequence[str]) -> int:
        return 1

    def loss(self, outputs: Float[Array, " batch"], labels: Float[Array, " batch"]) -> Float[Array, ""]:
        return losses.squared_error(outputs[:, None], labels[:, None]).mean()

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Float[Array, " batch"]:
        return _head_outputs(model, batch, **call)[:, 0]

    def predictions(
        self, outputs: Float[np.ndarray, " examples"], labels: Float[np.ndarray, " examples"], names: Sequence[str]
    ) -> Predictions:
        return Predictions(labels=labels, values=np.asarray(outputs, np.float64))


class Likelihoods(NamedTuple):
    """Statistics of each reference text under a language model."""

    losses: Float[Array, " batch"]  # summed over its labelled tokens
    tokens: Int[Array, " batch"]  # the number of labelled tokens
    correct: Int[Array, " batch"]  # the number of labelled tokens whose label has the largest logit


class Generation(CrossEntropyObjective):
    """A text for each example: the cross-entropy of its tokens under a causal language model."""

    head: ClassVar[Head] = "causal"
    fields: ClassVar[frozenset[str]] = frozenset({"losses", "tokens", "correct"})
    averaged: ClassVar[bool] = False

    def head_outputs(self, labels: Sequence[str]) -> None:
        return None

    def loss(self, outputs: Likelihoods, labels: Int[Array, "batch seq"]) -> Float[Array, ""]:
        # The mean is over the batch's labelled tokens, not over its texts, so long references weigh more.
        return outputs.losses.sum() / outputs.tokens.sum()

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Likelihoods:
        labels = jnp.asarray(batch.labels)
        if batch.segments is None:
            # The prompt's last token has the first label.
            more = {"prompt_end": jnp.argmax(labels != IGNORED, axis=-1) + 1}
        else:
            more = {"segments": jnp.asarray(batch.segments)}
        hidden = model.backbone(batch.tokens, batch.mask, **call, **more)
        return _token_likelihoods(model, hidden, labels, self.label_smoothing)

    def predictions(self, outputs: Any, labels: Shaped[np.ndarray, "..."], names: Sequence[str]) -> Predictions:
        return _likelihoods(outputs)


class TaggedTokens(NamedTuple):
    """The likelihoods of each text's tags, and the predicted ones."""

    likelihoods: Likelihoods
    predicted: Int[Array, "batch seq"]  # the class of the largest logit at each labelled token, elsewhere IGNORED


class TokenClassification(CrossEntropyObjective):
    """A class for each labelled token: the cross-entropy of a linear head's logits."""

    head: ClassVar[Head] = "token_classifier"
    fields: ClassVar[frozenset[str]] = frozenset({"losses", "tokens", "correct", "tags", "predicted_tags"})
    averaged: ClassVar[bool] = False

    def head_outputs(self, labels: Sequence[str]) -> int:
        return len(labels)

    def loss(self, outputs: TaggedTokens, labels: Int[Array, "batch seq"]) -> Float[Array, ""]:
        return _mean_loss(outputs.likelihoods)

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> TaggedTokens:
        labels = jnp.asarray(batch.labels)
        labelled = labels != IGNORED
        logits = model(batch.tokens, batch.mask, **call)
        each = losses.cross_entropy(logits, jnp.where(labelled, labels, 0), self.label_smoothing)
        each = jnp.where(labelled, each, 0.0)
        predicted = jnp.where(labelled, logits.argmax(-1), IGNORED)
        correct = labelled & (predicted == labels)
        return TaggedTokens(Likelihoods(each.sum(-1), labelled.sum(-1), correct.sum(-1)), predicted)

    def predictions(self, outputs: Any, labels: Int[np.ndarray, " tokens"], names: Sequence[str]) -> Predictions:
        likelihoods = _likelihoods(outputs.likelihoods)
        counts = outputs.likelihoods.tokens.tolist()

        def tags(classes: Int[np.ndarray, "..."]) -> list[list[str]]:
            return group_by_text([names[k] for k in classes[classes != IGNORED].tolist()], counts)

        return dataclasses.replace(likelihoods, tags=tags(labels), predicted_tags=tags(outputs.predicted))


class MaskedLanguageModel(CrossEntropyObjective):
    """The masked tokens of each text: their cross-entropy under a masked language model."""

    head: ClassVar[Head] = "masked"
    fields: ClassVar[frozenset[str]] = frozenset({"losses", "tokens", "correct"})
    averaged: ClassVar[bool] = False

    def head_outputs(self, labels: Sequence[str]) -> None:
        return None

    def loss(self, outputs: Likelihoods, labels: Int[Array, "batch seq"]) -> Float[Array, ""]:
        return _mean_loss(outputs)

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Likelihoods:
        hidden = model.backbone(batch.tokens, batch.mask, **call)
        return _token_likelihoods(model, hidden, jnp.asarray(batch.labels), self.label_smoothing)

    def predictions(self, outputs: Any, labels: Shaped[np.ndarray, "..."], names: Sequence[str]) -> Predictions:
        return _likelihoods(outputs)


class _Embedding:
    """Texts that are embedded one by one. Their outputs are embeddings of length 1."""

    head: ClassVar[Head] = "embedding"
    averaged: ClassVar[bool] = True

    def head_outputs(self, labels: Sequence[str]) -> None:
        return None

    def outputs(self, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Float[Array, "batch texts d_model"]:
        *axes, seq = batch.tokens.shape
        embeddings: Array = model(batch.tokens.reshape(-1, seq), batch.mask.reshape(-1, seq), **call)
        return embeddings.reshape(*axes, -1)


class Similarity(_Embedding):
    """A number for each pair of texts: the squared error of the cosine of their embeddings."""

    fields: ClassVar[frozenset[str]] = frozenset({"labels", "values"})

    def loss(self, outputs: Float[Array, "batch texts d_model"], labels: Float[Array, " batch"]) -> Float[Array, ""]:
        return losses.cosine_squared_error(outputs, labels).mean()

    def predictions(
        self,
        outputs: Float[np.ndarray, "examples texts d_model"],
        labels: Float[np.ndarray, " examples"],
        names: Sequence[str],
    ) -> Predictions:
        return Predictions(labels=labels, values=_cosines_of_anchors(outputs)[:, 0])


class Contrastive(_Embedding):
    """Texts that suit one another: each anchor's own positive among all positives and hard negatives of the batch.

    The batch is a run's own, so its negatives are too. Labels are groups. The predictions are a classification: which
    of an example's own texts, the positive (class 0) or the hard negative, has the larger cosine with the anchor.
    """

    fields: ClassVar[frozenset[str]] = frozenset({"labels", "logits"})

    def loss(self, outputs: Float[Array, "batch texts d_model"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
        return losses.multiple_negatives_ranking(outputs, labels).mean()

    def predictions(
        self,
        outputs: Float[np.ndarray, "examples texts d_model"],
        labels: Int[np.ndarray, " examples"],
        names: Sequence[str],
    ) -> Predictions:
        return Predictions(labels=np.zeros(len(labels), np.int32), logits=_cosines_of_anchors(outputs))


# The runs of a pack have one objective, and so the same number of texts in an example.
OBJECTIVES: dict[str, Objective] = {
    "classification": Classification(),
    "regression": Regression(),
    "generation": Generation(),
    "chat": Generation(),
    "image_classification": Classification(),
    "similarity": Similarity(),
    "contrastive": Contrastive(),
    "contrastive_triplets": Contrastive(),
    "token_classification": TokenClassification(),
    "masked_lm": MaskedLanguageModel(),
}


def training_objective(name: str, label_smoothing: float) -> Objective:
    """Returns the objective whose loss training minimises. Evaluation reads OBJECTIVES, which are not smoothed.

    Args:
      name: a key of OBJECTIVES.
      label_smoothing: 0, unless the objective is a `CrossEntropyObjective`.
    """
    objective = OBJECTIVES[name]
    if label_smoothing == 0:
        return objective
    assert isinstance(objective, CrossEntropyObjective), name
    return dataclasses.replace(objective, label_smoothing=label_smoothing)


def batch_loss(objective: Objective, model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Float[Array, ""]:
    """Returns the mean loss of a batch."""
    return objective.loss(objective.outputs(model, batch, **call), jnp.asarray(batch.labels))


def _mean_loss(likelihoods: Likelihoods) -> Float[Array, ""]:
    """Returns the mean over the batch's labelled tokens, and 0 if no token is labelled."""
    return likelihoods.losses.sum() / jnp.maximum(likelihoods.tokens.sum(), 1)


def _token_likelihoods(
    model: Any, hidden: Float[Array, "batch seq d_model"], labels: Int[Array, "batch seq"], label_smoothing: float
) -> Likelihoods:
    return Likelihoods(*losses.token_cross_entropy(model.logits, hidden, labels, label_smoothing=label_smoothing))


def _likelihoods(outputs: Any) -> Predictions:
    return Predictions(losses=np.asarray(outputs.losses, np.float64), tokens=outputs.tokens, correct=outputs.correct)


def _cosines_of_anchors(
    embeddings: Float[np.ndarray, "examples texts d_model"],
) -> Float[np.ndarray, "examples others"]:
    """Returns the cosines of each example's first text with its other texts, in float64."""
    unit = unit_rows(embeddings)
    cosines: np.ndarray = (unit[:, :1] * unit[:, 1:]).sum(-1)
    return cosines


def unit_rows(embeddings: Float[np.ndarray, "*examples d_model"]) -> Float[np.ndarray, "*examples d_model"]:
    """Returns the embeddings in float64, scaled to length 1. A mean over an ensemble's outputs is shorter."""
    wide = np.asarray(embeddings, np.float64)
    unit: np.ndarray = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    return unit


def _head_outputs(model: Any, batch: Batch, **call: Unpack[ModelCall]) -> Float[Array, "batch outputs"]:
    # Only some models accept token types, and only the examples of those models have them.
    types = {} if batch.types is None else {"types": batch.types}
    outputs: Array = model(batch.tokens, batch.mask, **types, **call)
    return outputs
