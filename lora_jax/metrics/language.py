"""Metrics of language models: the likelihood of references."""

import numpy as np

from lora_jax.metrics.metric import Predictions


def loss(predictions: Predictions) -> float:
    """Returns the mean negative log-likelihood of a labelled token, or of a class, in nats.

    The mean is over all tokens of the split, so long references weigh more. Raises ValueError if no token is labelled.
    """
    losses, tokens = np.asarray(predictions.losses, np.float64), _labelled(predictions)
    # A dot product and not a sum, whose rounding is another: recorded figures keep their last digit.
    return float(losses @ np.ones(len(losses)) / tokens)


def perplexity(predictions: Predictions) -> float:
    """Returns the exponential of the mean negative log-likelihood of a token (Jelinek et al., 1977)."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss(predictions)))


def bits_per_byte(predictions: Predictions) -> float:
    """Returns the negative log-likelihood of the labelled texts in bits, over their length in UTF-8 bytes.

    Unlike perplexity it compares models of different tokenizers (Gao et al., arXiv 2101.00027, section 3.1). Raises
    ValueError if no byte is labelled.
    """
    byte_count = float(np.asarray(predictions.byte_counts, np.float64).sum())
    if byte_count < 1:
        raise ValueError("no byte is labelled")
    return float(np.asarray(predictions.losses, np.float64).sum() / np.log(2) / byte_count)


def token_accuracy(predictions: Predictions) -> float:
    """Returns the share of labelled tokens that have the largest logit. Raises ValueError if no token is labelled."""
    return float(np.asarray(predictions.correct, np.float64).sum() / _labelled(predictions))


def _labelled(predictions: Predictions) -> float:
    tokens = float(np.asarray(predictions.tokens, np.float64).sum())
    if tokens < 1:
        raise ValueError("no token is labelled")
    return tokens
