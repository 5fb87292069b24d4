"""Rows of an array in a static order, by the cheapest form that gives them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def take(array: jax.Array, index: np.ndarray) -> jax.Array:
    """array[index] for a static int index of any shape: no operation, a slice, a repetition or a transposition where
    that is enough, else one gather. The gradient of a gather is a scatter, those of the others are as cheap as they.
    """
    flat, count = index.ravel(), array.shape[0]
    return _take_flat(array, flat, count).reshape(*index.shape, *array.shape[1:])


def _take_flat(array: jax.Array, index: np.ndarray, count: int) -> jax.Array:
    size = len(index)
    if not size:
        return array[:0]
    if np.array_equal(index, np.arange(index[0], index[0] + size)):
        return array if size == count else array[int(index[0]) : int(index[0]) + size]
    if size % count == 0 and np.array_equal(index, np.repeat(np.arange(count), size // count)):
        return jnp.broadcast_to(array[:, None], (count, size // count, *array.shape[1:])).reshape(-1, *array.shape[1:])
    step = int(index[1] - index[0])
    if size == count and step > 1 and count % step == 0:
        if np.array_equal(index, np.arange(count).reshape(-1, step).T.ravel()):
            return jnp.swapaxes(array.reshape(-1, step, *array.shape[1:]), 0, 1).reshape(array.shape)
    return array[index]


def inverse(order: np.ndarray) -> np.ndarray:
    """The permutation that undoes `order`."""
    result = np.empty_like(order)
    result[order] = np.arange(len(order))
    return result
