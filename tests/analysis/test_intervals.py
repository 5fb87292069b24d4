"""Intervals, paired tests and Holm's correction against scipy and figures worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mtl_jax.analysis.intervals import holm, interval, paired_difference, with_corrected_p


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_is_that_of_scipy(n, differs):
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    actual = interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    differs("interval against scipy", actual[:4], [values.mean(), low, high, values.std(ddof=1)], 1e-12)
    assert actual.n == n


def test_interval_of_too_few_values_and_of_equal_ones():
    assert interval([]) == (None, None, None, None, 0)
    assert interval([None, math.nan, math.inf]) == (None, None, None, None, 0)
    assert interval([2.0, None]) == (2.0, None, None, None, 1)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 0.0, 3)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_paired_test_is_that_of_scipy(n, differs):
    rng = np.random.default_rng(n)
    first = rng.normal(0.8, 0.05, n)
    second = first - 0.01 + rng.normal(0.0, 0.02, n)
    actual = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
    wanted = stats.ttest_rel(first, second)
    bounds = wanted.confidence_interval(0.95)
    differs("paired t-test against scipy", actual[:3], [(first - second).mean(), bounds.low, bounds.high], 1e-12)
    differs("p of a paired t-test against scipy", actual.p, wanted.pvalue, 1e-12)
    assert actual.n == n and actual.note == ""


def test_pairs_are_made_by_seed_and_need_both_sides():
    actual = paired_difference({0: 1.0, 1: 2.0, 2: None, 3: 5.0}, {1: 1.5, 0: 0.25, 2: 9.0})
    assert actual.n == 2 and actual.mean == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.parametrize(
    ("first", "second", "note", "mean"),
    [
        ({0: 1.0}, {0: 0.5}, "one seed", 0.5),
        ({0: 1.0}, {1: 0.5}, "no pairs", None),
        ({0: 0.3, 1: 0.4, 2: 0.8}, {0: 0.1, 1: 0.2, 2: 0.6}, "all differences are equal", 0.2),  # up to rounding
        ({0: 0.3, 1: 0.4}, {0: 0.3, 1: 0.4}, "all differences are equal", 0.0),
    ],
)
def test_what_cannot_be_tested_is_said(first, second, note, mean):
    actual = paired_difference(first, second)
    assert actual.note == note and actual.p is None
    assert actual.mean == (None if mean is None else pytest.approx(mean))
    assert not any(isinstance(value, float) and math.isnan(value) for value in actual)


def test_holm_by_hand():
    # sorted: .01·4, .02·3, .03·2, .04·1 and never below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None, 0.01, None]) == [None, pytest.approx(0.03), None]  # three could have been tested


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(rng.integers(1, 9)) ** 3).tolist()
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):  # Holm 1979: stop at the first that is too large
            if p[i] * (len(p) - rank) > 0.05:
                break
            rejected.add(int(i))
        assert {i for i, value in enumerate(holm(p)) if value <= 0.05} == rejected


def test_differences_are_corrected_together():
    differences = [paired_difference({0: 1.0, 1: 1.2, 2: 0.9}, {0: x, 1: x, 2: 2 * x}) for x in (0.1, 0.2, 0.3)]
    assert [d.corrected_p for d in with_corrected_p(differences)] == holm([d.p for d in differences])
