"""First-fit bin packing over several capacities, in a window of open rows."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.files import array_cache

WINDOW = 64  # open rows


def first_fit(demand: np.ndarray, limits: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """int64[N], the row of each example: the oldest of `window` open rows in which it fits, else a new row.

    Args:
      demand: int64[N, A], what each example takes of each of A capacities.
      limits: int64[A], what a row holds; no example takes more.
    """
    row = np.empty(len(demand), np.int64)
    if not len(demand):
        return row
    used = np.flatnonzero(demand.any(0))
    bits = int(limits.max()).bit_length() + 1
    # All capacities of a row are digits of one number, each with a guard bit that a subtraction clears where it fails.
    guard = sum(1 << (bits * (n + 1) - 1) for n in range(len(used)))
    full = _digits(limits[None, used], bits)[0] | guard
    demands = _digits(demand[:, used], bits)
    smallest = _digits(demand[:, used].min(0)[None], bits)[0]
    free: list[int] = []
    names: list[int] = []
    opened = 0
    for n, wanted in enumerate(demands):
        place = next((at for at, left in enumerate(free) if (left - wanted) & guard == guard), -1)
        if place < 0:
            if len(free) == window:  # close the oldest
                del free[0], names[0]
            place = len(free)
            free.append(full)
            names.append(opened)
            opened += 1
        left = free[place] - wanted
        row[n] = names[place]
        if (left - smallest) & guard == guard:
            free[place] = left
        else:  # no further example fits
            del free[place], names[place]
    return row


def _digits(values: np.ndarray, bits: int) -> list[int]:
    """Each line of values as one number with digits of so many bits."""
    if bits * values.shape[1] < 63:
        return (values << (bits * np.arange(values.shape[1]))).sum(1).tolist()
    return [sum(v << (bits * n) for n, v in enumerate(line)) for line in values.tolist()]


def cached_first_fit(demand: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`first_fit`, from the cache of earlier runs where it takes long."""
    key = {"first_fit": array_cache.checksum({"demand": demand, "limits": limits}), "window": WINDOW}
    return array_cache.load_or_make(key, lambda: {"row": first_fit(demand, limits)}, worth=0.05)["row"]
