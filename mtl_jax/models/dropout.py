"""Dropout with explicit randomness: the rate may be traced, and the bits of a row do not depend on where it lies.

`flax.linen.DropoutRates` cannot take a traced rate, and one key for a whole array would make the bits of a row depend
on how rows are split over devices and micro-batches. Here every row carries a key of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

RATE_LEVELS = 1 << 16  # the rate is rounded to 1/65536; the scaling uses the rounded rate, so the mean is kept exactly


class Noise(NamedTuple):
    """The random bits of one forward pass.

    keys            typed PRNG keys [R], one for each row
    rate            float32 scalar, may be traced: probability of dropping a feature. None drops none
    attention_rate  float32 scalar, may be traced: probability of dropping an attention weight. None leaves the
                    attention weights alone and saves their H·T·T random numbers a row
    adapter_rate    float32 scalar, may be traced: probability of dropping an input of an adapter's factors
    """

    keys: jax.Array
    rate: jax.Array | None
    attention_rate: jax.Array | None = None
    adapter_rate: jax.Array | None = None

    def drop(self, salt: int, x: jax.Array) -> jax.Array:
        """`dropout` of x [R, ...]."""
        return dropout(self, salt, x)

    def drop_attention(self, salt: int, x: jax.Array) -> jax.Array:
        """`attention_dropout` of x [R, ...]."""
        return attention_dropout(self, salt, x)


def inverted_dropout(keys: jax.Array, rate: jax.Array, salt: int, x: jax.Array) -> jax.Array:
    """Inverted dropout of x [R, ...] by keys [R]. A rate of 0 gives x exactly, of 1 zeros."""
    threshold = jnp.round(jnp.asarray(rate, jnp.float32) * RATE_LEVELS).astype(jnp.uint32)
    remaining = jnp.maximum(jnp.uint32(RATE_LEVELS) - threshold, jnp.uint32(1)).astype(jnp.float32)
    scale = (jnp.float32(RATE_LEVELS) / remaining).astype(x.dtype)
    uniform = _uniform(jax.vmap(jax.random.fold_in, (0, None))(keys, salt), x.shape)
    return jnp.where(uniform >= threshold, x * scale, jnp.zeros((), x.dtype))


def _uniform(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 `shape` = [R, ...], below LEVELS: a hash of the feature's number in its row and the row's key.

    Threefry makes the keys alone. For each feature it would take seven times as long as this, the mixing steps of a
    32-bit hash (Wellons 2018, lowbias32) with one word of the key in front of each.
    """
    first, *_, second = (
        jnp.broadcast_to(word.reshape(-1, *(1,) * (len(shape) - 1)), shape)
        for word in jnp.moveaxis(jax.random.key_data(keys), -1, 0)
    )
    number = jax.lax.iota(jnp.uint32, math.prod(shape[1:])).reshape(1, *shape[1:])
    h = jnp.broadcast_to(number, shape) + first
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15) ^ second) * jnp.uint32(0x846CA68B)
    return h >> 16


def dropout(noise: Noise | None, salt: int, x: jax.Array) -> jax.Array:
    """Inverted dropout of x [R, ...] at `noise.rate`; x itself without noise or rate.

    Calls with one Noise need different salts to drop different features.
    """
    if noise is None or noise.rate is None:
        return x
    return inverted_dropout(noise.keys, noise.rate, salt, x)


def attention_dropout(noise: Noise | None, salt: int, x: jax.Array) -> jax.Array:
    """As `dropout`, at `noise.attention_rate`; x itself where that is None."""
    if noise is None or noise.attention_rate is None:
        return x
    return inverted_dropout(noise.keys, noise.attention_rate, salt, x)
