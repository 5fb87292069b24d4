"""Dropout with explicit randomness: the rate may be traced, and the bits of a row do not depend on where it lies.

`flax.linen.Dropout` cannot take a traced rate, and one key for a whole array would make the bits of a row depend on
how rows are split over devices and micro-batches. Here every row carries a key of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LEVELS = 1 << 16  # the rate is rounded to 1/65536; the scaling uses the rounded rate, so the mean is kept exactly


class Noise(NamedTuple):
    """The randomness of one forward pass.

    keys            typed PRNG keys [R], one for each row
    rate            float32 scalar, may be traced: probability of dropping a feature. None drops none
    attention_rate  float32 scalar, may be traced: probability of dropping an attention weight. None leaves the
                    attention weights alone and saves their H·T·T random numbers a row
    """

    keys: jax.Array
    rate: jax.Array | None
    attention_rate: jax.Array | None = None

    def drop(self, salt: int, x: jax.Array) -> jax.Array:
        """`dropout` of x [R, ...]."""
        return dropout(self, salt, x)

    def drop_attention(self, salt: int, x: jax.Array) -> jax.Array:
        """`attention_dropout` of x [R, ...]."""
        return attention_dropout(self, salt, x)


def drop(keys: jax.Array, rate: jax.Array, salt: int, x: jax.Array) -> jax.Array:
    """Inverted dropout of x [R, ...] by keys [R]. A rate of 0 gives x exactly, of 1 zeros."""
    *inner, features = x.shape[1:]
    half = (features + 1) // 2

    def bits(key):
        return jax.random.bits(jax.random.fold_in(key, salt), (*inner, half), jnp.uint32)

    words = jax.vmap(bits)(keys)
    # Each random word serves two features: threefry makes 32 bits at a time, whatever the dtype asked for.
    uniform = jnp.concatenate([words & jnp.uint32(LEVELS - 1), words >> 16], axis=-1)[..., :features]
    threshold = jnp.round(jnp.asarray(rate, jnp.float32) * LEVELS).astype(jnp.uint32)
    kept = jnp.maximum(jnp.uint32(LEVELS) - threshold, jnp.uint32(1)).astype(jnp.float32)
    scale = (jnp.float32(LEVELS) / kept).astype(x.dtype)
    return jnp.where(uniform >= threshold, x * scale, jnp.zeros((), x.dtype))


def dropout(noise: Noise | None, salt: int, x: jax.Array) -> jax.Array:
    """Inverted dropout of x [R, ...] at `noise.rate`; x itself without noise or rate.

    Calls with one Noise need different salts to drop different features.
    """
    if noise is None or noise.rate is None:
        return x
    return drop(noise.keys, noise.rate, salt, x)


def attention_dropout(noise: Noise | None, salt: int, x: jax.Array) -> jax.Array:
    """As `dropout`, at `noise.attention_rate`; x itself where that is None."""
    if noise is None or noise.attention_rate is None:
        return x
    return drop(noise.keys, noise.attention_rate, salt, x)
