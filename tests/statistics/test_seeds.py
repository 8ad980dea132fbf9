"""Seeds' spread and standard errors, against SciPy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from lora_jax.statistics import SeedScores, share_standard_error, standard_error

SCORES = [0.81, 0.83, 0.86, 0.79]


def test_mean_std_and_interval_are_scipys():
    seeds = SeedScores.of(SCORES)
    assert (seeds.n, seeds.mean) == (4, pytest.approx(np.mean(SCORES)))
    assert seeds.std == pytest.approx(np.std(SCORES, ddof=1))
    expected = scipy.stats.t.interval(0.95, 3, np.mean(SCORES), scipy.stats.sem(SCORES))
    assert seeds.interval == pytest.approx(expected)


def test_one_seed_has_no_spread_and_none_is_refused():
    assert (SeedScores.of([0.5]).std, SeedScores.of([0.5]).interval) == (None, None)
    with pytest.raises(ValueError, match="no score"):
        SeedScores.of([])


def test_the_standard_error_of_a_share_is_that_of_its_outcomes():
    outcomes = np.arange(100) < 90
    assert share_standard_error(0.9, 100) == pytest.approx(0.03)
    assert standard_error(outcomes) == pytest.approx(0.03)
    for share, n in ((1.1, 10), (math.nan, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="share="):
            share_standard_error(share, n)


def test_the_standard_error_of_a_mean_is_scipys():
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    assert standard_error(values) == pytest.approx(scipy.stats.sem(values))
    assert standard_error(values[:1]) is None
