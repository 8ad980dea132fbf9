"""`Metric`, `Predictions` and `Scoring`."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one run on one split. Each evaluator fills some fields. The others are None.

    Attributes:
      labels: the true class of each example (int), or the true value (float).
      logits: the logits of a classification.
      values: the predicted numbers of a regression.
      losses: negative log-likelihood in nats of each example, summed over its labelled tokens.
      tokens: the number of labelled tokens of each example; 1 for a class.
      correct: the number of those that have the largest logit.
      texts: the generated text of each prompt.
      references: the reference texts of each prompt, at least one.
      byte_counts: the UTF-8 bytes of each example's labelled text.
      scores: how well each document suits each query; larger is better.
      relevance: how relevant each document is to each query; 0 is not relevant.
      tags: the true tag of each token of each text, in BIO: "O", "B-PER", "I-PER".
      predicted_tags: the predicted tags of the same tokens.
    """

    labels: Shaped[np.ndarray, " examples"] | None = None
    logits: Float[np.ndarray, "examples classes"] | None = None
    values: Float[np.ndarray, " examples"] | None = None
    losses: Float[np.ndarray, " examples"] | None = None
    tokens: Int[np.ndarray, " examples"] | None = None
    correct: Int[np.ndarray, " examples"] | Bool[np.ndarray, " examples"] | None = None
    texts: Sequence[str] | None = None
    references: Sequence[Sequence[str]] | None = None
    byte_counts: Int[np.ndarray, " examples"] | None = None
    scores: Float[np.ndarray, "queries documents"] | None = None
    relevance: Float[np.ndarray, "queries documents"] | None = None
    tags: Sequence[Sequence[str]] | None = None
    predicted_tags: Sequence[Sequence[str]] | None = None

    @property
    def fields(self) -> frozenset[str]:
        """The names of the fields that are filled."""
        return frozenset(field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None)


def combine(parts: Iterable[Predictions]) -> Predictions:
    """Joins the predictions of several evaluators. Raises ValueError if two of them fill the same field."""
    combined = Predictions()
    for part in parts:
        if both := combined.fields & part.fields:
            raise ValueError(f"two evaluators fill {', '.join(sorted(both))}")
        combined = dataclasses.replace(combined, **{name: getattr(part, name) for name in part.fields})
    return combined


def _never() -> None:
    """Returns None: the metric can be computed on every machine."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of the quality of predictions.

    Attributes:
      name: the key in records, configuration and METRICS.
      title: the name in text and figures.
      higher_is_better: whether a larger value is better.
      needs: the fields of `Predictions` that `compute` reads.
      compute: the definition, in float64.
      per_example: the values whose mean `compute` returns, one for each example in order, for tests on paired
        examples; None for a metric that is not a mean over examples.
      unavailable: returns why this machine cannot compute it, such as a missing program, or None if it can.
    """

    name: str
    title: str
    higher_is_better: bool
    needs: frozenset[str]
    compute: Callable[[Predictions], float]
    per_example: Callable[[Predictions], Shaped[np.ndarray, " examples"]] | None = None
    unavailable: Callable[[], str | None] = _never

    @classmethod
    def mean_of(
        cls,
        per_example: Callable[[Predictions], Shaped[np.ndarray, " examples"]],
        name: str,
        title: str,
        higher_is_better: bool,
        needs: frozenset[str],
    ) -> "Metric":
        """Returns the metric that is the mean of `per_example`. It raises ValueError if there is no example."""

        def compute(predictions: Predictions) -> float:
            values = per_example(predictions)
            if not len(values):
                raise ValueError("no example to score")
            return float(values.mean())

        return cls(name, title, higher_is_better, needs, compute, per_example)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The metrics of one run.

    Attributes:
      metrics: the names of those that are recorded, in order; the other two are among them.
      metric: the headline metric, on the test split.
      select: the metric on the validation split that picks the best evaluation.
    """

    metrics: tuple[str, ...]
    metric: str
    select: str
