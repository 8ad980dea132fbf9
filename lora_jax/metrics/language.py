"""Metrics of language models: of what they think of a reference, and of what they write."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


def token_scores(rows: Float[np.ndarray, "examples 3"]) -> dict[str, float]:
    """Mean negative log-likelihood of a labelled token in nats, its exponential, and how often the likeliest was right.

    A row is an example's summed negative log-likelihood, its number of labelled tokens, and how many of those had the
    largest logit. Raises ValueError if no token is labelled.
    """
    loss, tokens, right = np.asarray(rows, np.float64).sum(0)
    if tokens < 1:
        raise ValueError("no token is labelled")
    with np.errstate(over="ignore"):
        return {
            "loss": float(loss / tokens),
            "perplexity": float(np.exp(loss / tokens)),
            "token_accuracy": float(right / tokens),
        }


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4, 0 to 100, as sacrebleu computes it by default (13a tokens, exponential smoothing, cased).

    Papineni et al., ACL 2002; Post, arXiv 1804.08771. Each text has one reference or more.
    """
    import sacrebleu  # a quarter of a second, which only a task that writes should pay

    most = max(map(len, references))
    streams: Any = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(texts), streams).score)
