"""Does a measure predict transfer? Rank correlation over ordered pairs of tasks, which are not independent."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

MAX_EXACT = 7  # number of tasks up to which all permutations are used
PERMUTATIONS = 2000  # random ones for more tasks


class Correlation(NamedTuple):
    """Spearman's ρ between a measure and measured transfer.

    rho        over the pairs that have both; None for fewer than three pairs, or where one of the two is constant
    low, high  95 % interval by the jackknife over tasks (Arvesen 1969, since the pairs of one task depend on each
               other): Fisher's z ∓ t·SE, SE from the K values of z with one task left out; None for fewer than
               four tasks, or where one of the K values is not defined
    p          one-sided: the fraction of permutations of the tasks under which ρ is as large (Mantel 1967)
    pairs      number of ordered pairs
    """

    rho: float | None
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def correlation(measure: np.ndarray, transfer: np.ndarray, seed: int = 0) -> Correlation:
    """The correlation of two matrices over the same K tasks, without diagonals and entries that are not finite.

    Args:
      measure: float[K, K], larger = closer.
      transfer: [i, j] = gain of j by i.
      seed: of the random permutations.
    """
    count = len(measure)
    known = np.isfinite(measure) & np.isfinite(transfer) & ~np.eye(count, dtype=bool)
    rho = _spearman(measure[known], transfer[known])
    if rho is None:
        return Correlation(None, None, None, None, int(known.sum()))
    rng = np.random.default_rng(seed)
    low, high = _jackknife(measure, transfer, rho) if count >= 4 else (None, None)
    if count <= MAX_EXACT:
        orders = [np.asarray(order) for order in itertools.permutations(range(count))]
    else:
        orders = [np.arange(count)] + [rng.permutation(count) for _ in range(PERMUTATIONS)]
    permuted = [_spearman_of(measure[np.ix_(order, order)], transfer) for order in orders]
    defined = [value for value in permuted if value is not None]
    p = sum(value >= rho - 1e-12 for value in defined) / len(defined)
    return Correlation(rho, low, high, float(p), int(known.sum()))


def _spearman_of(measure: np.ndarray, transfer: np.ndarray) -> float | None:
    known = np.isfinite(measure) & np.isfinite(transfer) & ~np.eye(len(measure), dtype=bool)
    return _spearman(measure[known], transfer[known])


def _jackknife(measure: np.ndarray, transfer: np.ndarray, rho: float) -> tuple[float | None, float | None]:
    count = len(measure)
    without = [np.delete(np.arange(count), k) for k in range(count)]
    values = [_spearman_of(measure[np.ix_(rest, rest)], transfer[np.ix_(rest, rest)]) for rest in without]
    if any(value is None for value in values):
        return None, None
    limit = 1.0 - 1e-12  # z is infinite at 1
    z = np.arctanh(np.clip(values, -limit, limit))
    error = math.sqrt((count - 1) / count * float(((z - z.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    centre = math.atanh(min(max(rho, -limit), limit))
    return math.tanh(centre - half), math.tanh(centre + half)


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 3:
        return None
    a, b = stats.rankdata(first), stats.rankdata(second)
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / length if length > 0 else None
