"""Positions in a text as attention sees them: places in a segment, and distances in buckets.

Texts are packed one after another, so that within a segment distances in the row are distances in the text.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def segment_positions(segment: jax.Array) -> jax.Array:
    """int32[R, T]: the place of each token in its segment, from segment int32[R, T]."""
    index = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=jnp.int32), segment.shape)
    begins = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def distances(length: int) -> np.ndarray:
    """int[2T − 1]: all distances s − t of two places in a row, in order."""
    return np.arange(1 - length, length)


def by_place(x: jax.Array) -> jax.Array:
    """[..., T, 2T − 1], values by place t and distance as of `distances`, to [..., T, T], by places t and s.

    By reshaping alone: a gather has a scatter of T·T elements as its gradient.
    """
    length = x.shape[-2]
    flat = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*x.shape[:-2], -1)
    flat = flat[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return flat.reshape(x.shape)[..., :length]


def logarithmic_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Buckets 0 … `buckets` − 1 of distances in both directions (T5: Raffel et al. 2020): exact below a quarter of
    `buckets`, then logarithmic up to `max_distance`.
    """
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact))
    large = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(size < exact, size, large) + half * (distance > 0)


class RelativeBias(nn.Module):
    """One number for each head and bucket of distances, added to the scores of all layers (T5, MPNet)."""

    buckets: int
    max_distance: int
    heads: int
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """float32 [H, T, T]."""
        init = nn.initializers.normal(self.initializer_range)
        table = self.param("embedding", init, (self.buckets, self.heads), jnp.float32)
        index = jnp.asarray(logarithmic_buckets(distances(length), self.buckets, self.max_distance), jnp.int32)
        return by_place(jnp.broadcast_to(table[index].T[:, None], (self.heads, length, len(index))))
