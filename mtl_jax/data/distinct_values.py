"""Different values of large arrays, by sorting: `np.unique` and `np.isin` hash, a hundred times slower (numpy 2.4)."""

from __future__ import annotations

import numpy as np


def distinct(values: np.ndarray) -> np.ndarray:
    """The different values of an array [M], ascending; NaN once."""
    return np.unique(values, return_counts=True)[0]


def is_among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """bool [M], which `values` [M] occur in the array `ascending` [N]."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values
