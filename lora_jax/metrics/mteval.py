"""BLEU and NIST by mteval-v13a's definition, as the official E2E scorer prints them.

That is ``measure_scores.py -p`` of https://github.com/tuetschek/e2e-metrics, which the LoRA paper's figures come from.
Texts are lower-cased, split as 13a, and not smoothed.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_jax.metrics.metric import Predictions

_BLEU_ORDER, _NIST_ORDER = 4, 5
# The scorer's floors, which keep the logarithm of a corpus without a match, or without an n-gram, finite.
_LEAST_HITS, _LEAST_TOTAL = 1e-15, 1e-9
# NIST's penalty is 1/2 where the texts have 2/3 of the length of their references.
_NIST_BETA = math.log(2) / math.log(1.5) ** 2

NGrams = Counter[tuple[str, ...]]


def bleu(predictions: Predictions) -> float:
    """Returns corpus BLEU-4, 0 to 100 (Papineni et al., ACL 2002).

    The brevity penalty compares each text with its reference of the closest length, the shorter of two.
    """
    texts, references = _read(predictions)
    hits, totals = _matches(texts, references, _BLEU_ORDER)
    logs = (
        math.log(max(sum(found.values()), _LEAST_HITS) / max(total, _LEAST_TOTAL))
        for found, total in zip(hits, totals, strict=True)
    )
    reference_length = sum(
        min(lengths, key=lambda length: (abs(length - len(text)), length))
        for text, lengths in zip(texts, references.lengths, strict=True)
    )
    return 100 * math.exp(sum(logs) / _BLEU_ORDER + min(0.0, 1 - reference_length / totals[0]))


def nist(predictions: Predictions) -> float:
    """Returns NIST-5 (Doddington, HLT 2002): n-grams weigh by their information in all references.

    The length penalty compares the texts with the mean length of each one's references. mteval's Perl script, which the
    scorer runs without ``-p``, divides by the mean number of references instead: another value where they vary.
    """
    texts, references = _read(predictions)
    hits, totals = _matches(texts, references, _NIST_ORDER)
    counts = references.totals
    gain = sum(
        sum(count * math.log2(counts[ngram[:-1]] / counts[ngram]) for ngram, count in found.items()) / max(total, 1)
        for found, total in zip(hits, totals, strict=True)
    )
    ratio = totals[0] / sum(sum(lengths) / len(lengths) for lengths in references.lengths)
    return gain * math.exp(-_NIST_BETA * math.log(min(ratio, 1.0)) ** 2)


@dataclass(frozen=True)
class _References:
    """The n-grams of all references, n from 1 to 5.

    Attributes:
      largest: of each prompt, the largest count of each n-gram in one of its references.
      lengths: of each prompt, the number of tokens of each of its references.
      totals: the counts over all references; of the empty n-gram, the number of tokens.
    """

    largest: list[NGrams]
    lengths: list[list[int]]
    totals: NGrams


def _read(predictions: Predictions) -> tuple[list[list[str]], _References]:
    texts = [_tokens(text) for text in predictions.texts or ()]
    if not texts:
        raise ValueError("no text to score")
    return texts, _count(tuple(map(tuple, predictions.references or ())))


@functools.lru_cache(maxsize=4)  # the runs of a sweep share their references
def _count(references: tuple[tuple[str, ...], ...]) -> _References:
    largest, lengths, totals = [], [], Counter[tuple[str, ...]]()
    for texts in references:
        tokens = [_tokens(text) for text in texts]
        counts = [_ngrams(words, _NIST_ORDER) for words in tokens]
        largest.append(functools.reduce(Counter.__or__, counts))
        lengths.append([len(words) for words in tokens])
        for count in counts:
            totals.update(count)
    totals[()] = sum(map(sum, lengths))
    return _References(largest, lengths, totals)


def _matches(texts: list[list[str]], references: _References, order: int) -> tuple[list[NGrams], list[int]]:
    """Returns, for each n up to `order`, the n-grams of texts that their references have, and the number of n-grams.

    As in the scorer, a text of fewer than n - 1 tokens subtracts from the number of n-grams. mteval's Perl script
    counts none there.
    """
    hits: list[NGrams] = [Counter() for _ in range(order)]
    for text, largest in zip(texts, references.largest, strict=True):
        for ngram, count in (_ngrams(text, order) & largest).items():
            hits[len(ngram) - 1][ngram] += count
    return hits, [sum(len(text) - n for text in texts) for n in range(order)]


def _ngrams(tokens: Sequence[str], order: int) -> NGrams:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, order + 1) for i in range(len(tokens) - n + 1))


def _tokens(text: str) -> list[str]:
    """Returns lower-cased 13a tokens. An empty text has one, an empty string, as in the scorer."""
    return _tokenizer()(text).lower().split(" ")


@functools.cache
def _tokenizer() -> Callable[[str], str]:
    from sacrebleu.metrics.bleu import BLEU  # takes a quarter of a second, which only a generation should pay

    tokenizer: Callable[[str], str] = BLEU(tokenize="13a").tokenizer
    return tokenizer
