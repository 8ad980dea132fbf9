"""Differences of runs: against SciPy, by symmetry, and by the coverage of their intervals in simulations."""

import numpy as np
import pytest
import scipy.stats
from scipy.special import expit

from lora_jax.statistics import Difference, compare_corpus, compare_means, corpus_metric
from lora_jax.statistics.paired import mcnemar

DRAWS = np.random.default_rng(0)


def outcomes(runs, examples, quality=1.5, *, difficulty=None, seed_std=0.0, draws=DRAWS):
    """0/1 outcomes: logit(p) is the run's quality less the example's difficulty, both normal."""
    difficulty = np.zeros(examples) if difficulty is None else difficulty
    return draws.random((runs, examples)) < expit(quality - difficulty + seed_std * draws.normal(size=(runs, 1)))


def fields(difference: Difference):
    return [difference.value, difference.low, difference.high, difference.p]


@pytest.mark.parametrize("only_a, only_b", [(10, 2), (2, 10), (6, 0), (5, 0), (19, 8), (300, 250), (0, 0)])
def test_two_runs_have_the_p_value_of_mcnemars_exact_test(only_a, only_b):
    a = np.repeat([True, False, True], [only_a, only_b, 400])
    b = np.repeat([False, True, True], [only_a, only_b, 400])
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)
    assert compare_means(a[None], b[None]).p == pytest.approx(expected)


def test_the_interval_of_two_runs_is_that_of_bonett_and_price():
    a, b = np.repeat([[True, False, True], [False, True, True]], [30, 12, 958], axis=1)
    difference, n = compare_means(a[None], b[None]), 1000
    p12, p21 = 31 / (n + 2), 13 / (n + 2)
    half = scipy.stats.t.ppf(0.975, n - 1) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert fields(difference)[:3] == pytest.approx([0.018, p12 - p21 - half, p12 - p21 + half])
    assert difference.distinguishable and (difference.n_examples, difference.n_seeds) == (n, (1, 1))
    assert difference.kind == "examples"


def test_means_of_two_runs_are_compared_as_by_the_paired_t_test():
    a, b = DRAWS.normal(size=(2, 1, 200))
    difference, expected = compare_means(a, b), scipy.stats.ttest_rel(a[0], b[0])
    low, high = expected.confidence_interval()
    assert fields(difference) == pytest.approx([a.mean() - b.mean(), low, high, expected.pvalue])


def test_seeds_that_differ_by_far_more_than_examples_are_compared_as_by_welch():
    scores_a, scores_b = np.array([1.0, 5.0, 3.0, 9.0]), np.array([4.0, 9.0, 6.0])
    a, b = (scores[:, None] + 1e-6 * DRAWS.normal(size=(len(scores), 50)) for scores in (scores_a, scores_b))
    difference, expected = compare_means(a, b), scipy.stats.ttest_ind(scores_a, scores_b, equal_var=False)
    low, high = expected.confidence_interval()
    assert fields(difference) == pytest.approx([-11 / 6, low, high, expected.pvalue], abs=1e-5)
    assert (difference.kind, difference.n_seeds) == ("examples and seeds", (4, 3))


def test_one_seed_on_a_side_gives_an_interval_over_examples():
    assert compare_means(outcomes(3, 100), outcomes(1, 100)).kind == "examples"


CASES = {
    "one seed": (compare_means, outcomes(1, 300), outcomes(1, 300, 1.0)),
    "seeds": (compare_means, outcomes(3, 300), outcomes(2, 300, 1.0)),
    "numbers": (compare_means, DRAWS.normal(size=(2, 90)), DRAWS.normal(size=(2, 90))),
}
LABELS = DRAWS.integers(0, 2, 300).astype(np.int32)


def matthews(a, b):
    predicted = (np.where(side, LABELS, 1 - LABELS) for side in (a, b))
    return compare_corpus(corpus_metric("matthews", 2), LABELS, *predicted, 2)


CASES |= {f"matthews, {name}": (matthews, *CASES[name][1:]) for name in ("one seed", "seeds")}


@pytest.mark.parametrize("compare, a, b", CASES.values(), ids=CASES)
def test_swapped_runs_have_the_opposite_difference(compare, a, b):
    there, back = compare(a, b), compare(b, a)
    assert fields(there) == pytest.approx([-back.value, -back.high, -back.low, back.p])
    assert there.low < there.value < there.high and there.value != 0


@pytest.mark.parametrize("compare, a, _", CASES.values(), ids=CASES)
def test_equal_runs_are_not_distinguishable(compare, a, _):
    difference = compare(a, a)
    assert (difference.value, difference.p, difference.distinguishable) == (0, 1, False)
    single = compare(a[:1], a[:1])
    assert (single.value, single.p, single.distinguishable) == (0, 1, False)


def test_runs_of_other_examples_cannot_be_paired():
    for a, b in (((1, 5), (1, 6)), ((1, 1), (1, 1)), ((0, 5), (1, 5))):
        with pytest.raises(ValueError, match="must be"):
            compare_means(np.zeros(a), np.zeros(b))


def covered(compare, truth, *, runs, examples, seed_std=0.0, gain=0.3, pairs=400):
    """The share of simulated pairs whose interval has the truth in it. Runs and test sets are drawn anew each time."""
    draws = np.random.default_rng(1)

    def simulated():
        difficulty = draws.normal(size=examples)
        made = [
            outcomes(runs, examples, quality, difficulty=difficulty, seed_std=seed_std, draws=draws)
            for quality in (1.5 + gain, 1.5)
        ]
        return compare(*made, draws)

    return np.mean([(d := simulated()).low <= truth <= d.high for _ in range(pairs)])


def true_gain(gain, seed_std):
    """The difference of the expected shares: logits are normal around 1.5 + gain and around 1.5."""
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    spread = np.sqrt(1 + seed_std**2) * points
    return float((expit(1.5 + gain + spread) - expit(1.5 + spread)) @ weights / weights.sum())


@pytest.mark.parametrize("runs, seed_std", [(1, 0.0), (3, 0.2), (3, 0.6), (5, 0.3)])
@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_intervals_of_means_cover_the_truth_in_95_of_100_cases(runs, seed_std, gain):
    share = covered(
        lambda a, b, _: compare_means(a, b),
        true_gain(gain, seed_std),
        runs=runs,
        examples=600,
        seed_std=seed_std,
        gain=gain,
    )
    assert 0.92 <= share <= 0.98


@pytest.mark.parametrize("runs, seed_std", [(2, 0.0), (5, 0.0), (5, 0.1)])
def test_seeds_with_little_effect_of_their_own_make_no_interval_too_short(runs, seed_std):
    truth = true_gain(0.3, seed_std)
    share = covered(lambda a, b, _: compare_means(a, b), truth, runs=runs, examples=600, seed_std=seed_std)
    assert share >= 0.95  # the effect cannot be negative, so that its estimate is too large on average


@pytest.mark.parametrize("runs, seed_std", [(1, 0.0), (3, 0.4)])
def test_intervals_of_matthews_cover_the_truth(runs, seed_std):
    """Labels are of both classes equally, and errors independent of them: the correlation is 2·accuracy - 1."""

    def compare(a, b, draws):
        labels = draws.integers(0, 2, a.shape[1])
        predicted = (np.where(side, labels, 1 - labels) for side in (a, b))
        return compare_corpus(corpus_metric("matthews", 2), labels, *predicted, 2)

    share = covered(compare, 2 * true_gain(0.3, seed_std), runs=runs, examples=400, seed_std=seed_std, pairs=200)
    assert 0.92 <= share <= 0.98
