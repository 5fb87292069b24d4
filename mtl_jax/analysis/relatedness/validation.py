"""Does a measure foretell transfer? Rank correlation over ordered pairs of tasks, which are not independent."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLED = 2000
EXACT = 7  # tasks up to which all orders are tried


class Correlation(NamedTuple):
    """Spearman's ρ between a measure and measured transfer.

    rho        over the pairs that have both; None below three pairs or where one of them is constant
    low, high  95 % interval: percentiles of ρ over tasks drawn with replacement (a bootstrap of the tasks, since the
               pairs of one task depend on each other); None below four tasks
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
      seed: of the resampling.
    """
    count = len(measure)
    known = np.isfinite(measure) & np.isfinite(transfer) & ~np.eye(count, dtype=bool)
    rho = _spearman(measure[known], transfer[known])
    if rho is None:
        return Correlation(None, None, None, None, int(known.sum()))
    rng = np.random.default_rng(seed)
    low = high = None
    if count >= 4:
        drawn = [_resampled(measure, transfer, known, rng.integers(0, count, count)) for _ in range(RESAMPLED)]
        drawn = [value for value in drawn if value is not None]
        if drawn:
            low, high = (float(value) for value in np.percentile(drawn, [2.5, 97.5]))
    if count <= EXACT:
        orders = [np.asarray(order) for order in itertools.permutations(range(count))]
    else:
        orders = [np.arange(count)] + [rng.permutation(count) for _ in range(RESAMPLED)]
    found = [_spearman_of(measure[np.ix_(order, order)], transfer) for order in orders]
    larger = [value for value in found if value is not None]
    p = sum(value >= rho - 1e-12 for value in larger) / len(larger)
    return Correlation(rho, low, high, float(p), int(known.sum()))


def _spearman_of(measure, transfer):
    known = np.isfinite(measure) & np.isfinite(transfer) & ~np.eye(len(measure), dtype=bool)
    return _spearman(measure[known], transfer[known])


def _resampled(measure, transfer, known, tasks):
    """ρ over the pairs of tasks drawn with replacement; a task with itself is no pair."""
    grid = np.ix_(tasks, tasks)
    chosen = known[grid]  # the diagonal is not known, so a task drawn twice gives none
    return _spearman(measure[grid][chosen], transfer[grid][chosen])


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 3:
        return None
    a, b = stats.rankdata(first), stats.rankdata(second)
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / length if length > 0 else None

