"""Does a measure foretell transfer? Rank correlation over ordered pairs of tasks, which are not independent."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

ORDERS = 2000  # tried beyond that
EXACT = 7  # tasks up to which all orders are tried


class Correlation(NamedTuple):
    """Spearman's ρ between a measure and measured transfer.

    rho        over the pairs that have both; None below three pairs or where one of them is constant
    low, high  95 % interval by the jackknife over tasks (Arvesen 1969, since the pairs of one task depend on each
               other): Fisher's z ∓ t·SE, SE from the K values of z with one task left out; None below four tasks or
               where one of them is not defined
    p          one-sided: the share of orders of the tasks under which ρ is as large (Mantel 1967)
    pairs      ordered pairs counted
    """

    rho: float | None
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def correlation(measure: np.ndarray, transfer: np.ndarray, seed: int = 0) -> Correlation:
    """Of two matrices over the same K tasks; diagonals and what is not finite are left out.

    Args:
      measure: float[K, K], larger = closer.
      transfer: [i, j] = what i brings j.
      seed: of the orders that are tried.
    """
    count = len(measure)
    known = np.isfinite(measure) & np.isfinite(transfer) & ~np.eye(count, dtype=bool)
    rho = _spearman(measure[known], transfer[known])
    if rho is None:
        return Correlation(None, None, None, None, int(known.sum()))
    rng = np.random.default_rng(seed)
    low, high = _jackknife(measure, transfer, rho) if count >= 4 else (None, None)
    if count <= EXACT:
        orders = [np.asarray(order) for order in itertools.permutations(range(count))]
    else:
        orders = [np.arange(count)] + [rng.permutation(count) for _ in range(ORDERS)]
    found = [_spearman_of(measure[np.ix_(order, order)], transfer) for order in orders]
    larger = [value for value in found if value is not None]
    p = sum(value >= rho - 1e-12 for value in larger) / len(larger)
    return Correlation(rho, low, high, float(p), int(known.sum()))


def _spearman_of(measure, transfer):
    known = np.isfinite(measure) & np.isfinite(transfer) & ~np.eye(len(measure), dtype=bool)
    return _spearman(measure[known], transfer[known])


def _jackknife(measure, transfer, rho):
    count = len(measure)
    without = [np.delete(np.arange(count), k) for k in range(count)]
    found = [_spearman_of(measure[np.ix_(kept, kept)], transfer[np.ix_(kept, kept)]) for kept in without]
    if any(value is None for value in found):
        return None, None
    limit = 1.0 - 1e-12  # where z ends
    z = np.arctanh(np.clip(found, -limit, limit))
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
