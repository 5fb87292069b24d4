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
    free = np.empty((window, demand.shape[1]), np.int64)
    name = np.empty(window, np.int64)
    smallest = demand.min(0) if len(demand) else limits
    count = opened = 0
    for n in range(len(demand)):
        fits = (free[:count] >= demand[n]).all(1)
        place = int(fits.argmax()) if count else 0
        if not count or not fits[place]:
            if count == window:  # close the oldest
                free[:-1], name[:-1] = free[1:], name[1:]
                count -= 1
            place = count
            free[place], name[place] = limits, opened
            count += 1
            opened += 1
        free[place] -= demand[n]
        row[n] = name[place]
        if (free[place] < smallest).any():  # no further example fits
            free[place : count - 1], name[place : count - 1] = free[place + 1 : count], name[place + 1 : count]
            count -= 1
    return row


def cached_first_fit(demand: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`first_fit`, from the cache of earlier runs where it takes long."""
    key = {"first_fit": array_cache.checksum({"demand": demand, "limits": limits}), "window": WINDOW}
    return array_cache.load_or_make(key, lambda: {"row": first_fit(demand, limits)}, worth=0.05)["row"]
