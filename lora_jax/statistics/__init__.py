"""Statistics of comparisons: spread over seeds, standard errors, differences of runs on the same test examples.

README.md of this package has the formulas and their sources. Imports NumPy and SciPy alone.
"""

from lora_jax.statistics.bootstrap import corpus_standard_error
from lora_jax.statistics.corpus import CORPUS_METRICS, Answers, CorpusMetric, corpus_metric
from lora_jax.statistics.paired import Difference, compare_corpus, compare_means
from lora_jax.statistics.seeds import SeedScores, share_standard_error, standard_error

__all__ = [
    "CORPUS_METRICS",
    "Answers",
    "CorpusMetric",
    "Difference",
    "SeedScores",
    "compare_corpus",
    "compare_means",
    "corpus_metric",
    "corpus_standard_error",
    "share_standard_error",
    "standard_error",
]
