"""Statistics of survival: by hand, and beside scipy and scikit-learn."""

import doctest

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics

from experiments import survival


def test_the_examples_run():
    assert doctest.testmod(survival).failed == 0


def test_the_area_is_that_of_others():
    random = np.random.default_rng(0)
    values = random.integers(0, 9, 60) / 4  # With ties.
    survives = random.random(60) < values / 4
    found = survival.auc(values, survives)
    assert found == pytest.approx(
        sklearn.metrics.roc_auc_score(survives, values)
    )
    statistic = scipy.stats.mannwhitneyu(
        values[survives], values[~survives]
    ).statistic
    pairs = survives.sum() * (~survives).sum()
    assert found == pytest.approx(statistic / pairs)
    assert 0.6 < found < 1


def test_without_survivors_there_is_no_area():
    assert np.isnan(survival.auc([1, 2], [False, False]))
    assert np.isnan(survival.auc([1, 2], [True, True]))


@pytest.mark.parametrize("counts", [(7, 3, 2, 8), (5, 0, 0, 5)])
def test_firth_s_odds_are_those_of_a_table_with_halves(counts):
    """For one binary covariate the penalty adds 1/2 to each of four cells."""
    a, b, c, d = counts
    outcomes = np.repeat([True, False, True, False], counts)
    group = np.repeat([1, 1, 0, 0], counts)
    _, log_odds = survival.logistic(group[:, None], outcomes)
    odds = (a + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5))
    assert log_odds == pytest.approx(np.log(odds), abs=1e-5)


def test_coefficients_maximize_the_penalized_likelihood():
    random = np.random.default_rng(1)
    covariates = random.normal(size=(50, 2))
    outcomes = random.random(50) < scipy.special.expit(2 * covariates[:, 0])
    design = np.column_stack([np.ones(50), covariates])

    def loss(found):
        scores = design @ found
        chances = scipy.special.expit(scores)
        weights = chances * (1 - chances)
        _, penalty = np.linalg.slogdet(design.T @ np.diag(weights) @ design)
        likelihood = np.sum(outcomes * scores - np.log1p(np.exp(scores)))
        return -likelihood - penalty / 2

    best = scipy.optimize.minimize(loss, np.zeros(3)).x
    found = survival.logistic(covariates, outcomes)
    np.testing.assert_allclose(found, best, atol=1e-3)


def test_equal_groups_do_not_differ_at_equal_values():
    values = np.tile([0.5, 1, 2, 4, 1, 2], 2)
    survives = np.tile([False, False, True, True, True, False], 2)
    other = np.repeat([False, True], 6)
    log_odds, difference = survival.at_equal_values(values, survives, other)
    assert log_odds == pytest.approx(0, abs=1e-6)
    assert difference == pytest.approx(0, abs=1e-6)


def test_a_group_of_larger_values_need_not_survive_more_at_equal_ones():
    """Survival follows the value alone, or the group as well."""
    random = np.random.default_rng(2)
    other = np.repeat([False, True], 2000)
    logs = random.normal(size=4000) + other
    for effect in (0, 1.5):
        chances = scipy.special.expit(logs + effect * other)
        survives = random.random(4000) < chances
        found = survival.at_equal_values(np.exp(logs), survives, other)
        assert found[0] == pytest.approx(effect, abs=0.25)
        assert (found[1] > 0.15) == (effect > 0)


def test_intervals_are_those_of_resampled_images():
    values = np.random.default_rng(3).normal(size=400)
    low, high = survival.interval(lambda some: values[some].mean(), 400)
    half = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    both = survival.interval(lambda some: (1.0, float("nan")), 400, resamples=9)
    np.testing.assert_equal(both, [[1, np.nan], [1, np.nan]])
