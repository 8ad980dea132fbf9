"""METEOR, ROUGE-L and CIDEr as in coco-caption, which the official E2E scorer runs: after Stanford's PTB tokenizer.

The tokenizer drops punctuation. ROUGE-L and CIDEr are pycocoevalcap's, with the same definitions as the scorer's.
"""

import functools
from collections.abc import Iterable

import numpy as np

from lora_jax.metrics.java import PROCESS
from lora_jax.metrics.metric import Predictions

_References = tuple[tuple[str, ...], ...]


def meteor(predictions: Predictions) -> float:
    """Returns METEOR 1.5 for English, 0 to 100 (Denkowski and Lavie, WMT 2014), of all texts as one corpus."""
    texts, references = _tokenized(predictions)
    return 100 * PROCESS.meteor(texts, references)


def rouge_l(predictions: Predictions) -> float:
    """Returns the mean ROUGE-L of the texts, 0 to 100 (Lin, ACL workshop 2004), with beta = 1.2.

    Precision and recall are each the best over a text's references, be they of different ones.
    """
    from pycocoevalcap.rouge.rouge import Rouge

    texts, references = _tokenized(predictions)
    scorer = Rouge()
    pairs = zip(texts, references, strict=True)
    return 100 * float(np.mean([scorer.calc_score([text], list(candidates)) for text, candidates in pairs]))


def cider(predictions: Predictions) -> float:
    """Returns CIDEr-D, 0 to 10 (Vedantam et al., CVPR 2015), with document frequencies from the references."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for text, candidates in zip(*_tokenized(predictions), strict=True):
        scorer += (text, list(candidates))
    return float(scorer.compute_score()[0])


def _tokenized(predictions: Predictions) -> tuple[tuple[str, ...], _References]:
    if not predictions.texts:
        raise ValueError("no text to score")
    return _texts(tuple(predictions.texts)), _references(tuple(map(tuple, predictions.references or ())))


@functools.lru_cache(maxsize=2)  # the three metrics of a run read the same texts
def _texts(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_tokens(texts))


@functools.lru_cache(maxsize=4)  # the runs of a sweep share their references
def _references(references: _References) -> _References:
    tokenized = iter(_tokens(text for texts in references for text in texts))
    return tuple(tuple(next(tokenized) for _ in texts) for texts in references)


def _tokens(texts: Iterable[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    return [
        " ".join(token for token in text.rstrip().split(" ") if token not in PUNCTUATIONS)
        for text in PROCESS.tokenize(list(texts))
    ]
