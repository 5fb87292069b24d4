"""Paired tests on examples, against enumeration and the binomial distribution."""

import itertools
import math

import numpy as np
import pytest

from mtl_jax.analysis.paired_test import example_scores, paired_test
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.errors import UserError


def test_p_is_the_share_of_all_signs():
    rng = np.random.default_rng(0)
    first, second = rng.random(24), rng.random(24) + 0.15
    groups = [f"g{n % 8}" for n in range(24)]
    sums = [sum(first[n] - second[n] for n in range(24) if n % 8 == g) for g in range(8)]
    total = abs(sum(sums))
    signs = itertools.product((1, -1), repeat=8)
    exact = np.mean([abs(sum(s * d for s, d in zip(sign, sums, strict=True))) >= total - 1e-9 for sign in signs])
    actual = paired_test(first, second, groups)
    assert actual.p == pytest.approx(exact, abs=0.02) and (actual.examples, actual.groups) == (24, 8)
    assert actual.first - actual.second == pytest.approx((first - second).mean())
    assert actual.low < actual.first - actual.second < actual.high and actual.mcnemar is None


def test_interval_and_mcnemar():
    rng = np.random.default_rng(1)
    first, second = (rng.random(400) < 0.7).astype(float), (rng.random(400) < 0.5).astype(float)
    actual = paired_test(first, second, range(400))
    b, c = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    assert (actual.only_first, actual.only_second) == (b, c)
    tail = sum(math.comb(b + c, k) for k in range(max(b, c), b + c + 1)) / 2 ** (b + c)
    assert actual.mcnemar == pytest.approx(min(1.0, 2 * tail))
    half = 1.96 * (first - second).std() / 20
    assert actual.high - actual.low == pytest.approx(2 * half, rel=0.05)
    same = paired_test(first, first, range(400))
    assert (same.p, same.mcnemar, same.low, same.high) == (1.0, 1.0, 0.0, 0.0)
    with pytest.raises(UserError, match="nothing to compare"):
        paired_test(np.zeros(0), np.zeros(0), [])


def test_scores_of_records():
    known = np.array([True, False, True, True])
    words = GoldLabels(np.array([1, 2, 0, 2]), known, np.array([0, 3, 4]))
    message = [np.array([1, 0, 1]), np.array([2])]
    np.testing.assert_array_equal(example_scores("class", words, message, False), [0.5, 1.0])
    texts = GoldLabels(np.array([1, 2, 0, 2]), known, np.arange(5))
    np.testing.assert_array_equal(example_scores("class", texts, [1, 2, 1, 2], False), [1, np.nan, 0, 1])
    sets = GoldLabels(np.array([[1.0, 0.0], [1.0, 1.0]], np.float32), np.array([True, True]), np.arange(3))
    np.testing.assert_array_equal(example_scores("set", sets, [[1, 0], [1, 0]], False), [1, 0])
    numbers = GoldLabels(np.array([1.5, 2.0], np.float32), np.array([True, True]), np.arange(3))
    np.testing.assert_array_equal(example_scores("real", numbers, [1.0, 2.0], False), [-0.5, 0])
