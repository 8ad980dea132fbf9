"""ROUGE of generated texts (Lin, 2004)."""

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.metric import Predictions


def f_measures(kind: str, predictions: Predictions) -> Float[np.ndarray, " examples"]:
    """Returns the ROUGE F-measure of each text against the best of its references, 0 to 100.

    Google's rouge-score computes it: words of letters a-z and digits, in lower case, with Porter's stemmer on words of
    more than three characters.

    Args:
      kind: "rouge1" or "rouge2", by unigrams or bigrams; "rougeL", by the longest common subsequence of the whole
        texts, as if each were one sentence.
      predictions: the texts and their references.
    """
    from rouge_score.rouge_scorer import RougeScorer  # takes a second, which only a generation should pay

    texts, references = predictions.texts or (), predictions.references or ()
    scorer = RougeScorer([kind], use_stemmer=True)
    return np.array(
        [
            100 * scorer.score_multi(of_text, text)[kind].fmeasure
            for text, of_text in zip(texts, references, strict=True)
        ],
        np.float64,
    )
