"""Scaled dot-product attention inside the segments of packed rows (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mtl_jax.models.activation_sharding import gather_tokens
from mtl_jax.models.dropout import Noise, attention_dropout


def attend(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, noise: Noise | None) -> jax.Array:
    """Attention of each token to the tokens of its own segment.

    query, key, value [R, T, H, D/H], segment int32[R, T] -> [R, T, H, D/H], in the dtype of the values. Scores and
    softmax are float32. Padding (segment 0) attends to padding, so that no row of the softmax is empty.
    """
    chex.assert_rank(query, 4)
    chex.assert_equal_shape([query, key, value])
    chex.assert_shape(segment, query.shape[:2])
    chex.assert_type(segment, int)
    key, value = gather_tokens(key), gather_tokens(value)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # heads first: faster products on CPU
    weights = jax.nn.softmax(_scores(query, key, segment), axis=-1).astype(value.dtype)
    weights = attention_dropout(noise, 0, weights)
    return jnp.swapaxes(jnp.einsum("rhts,rhsd->rhtd", weights, value), 1, 2)


def _scores(query: jax.Array, key: jax.Array, segment: jax.Array) -> jax.Array:
    """float32 [R, H, T, T] of query and key [R, H, T, D/H]; next to −∞ between segments."""
    scale = jnp.asarray(query.shape[-1] ** -0.5, jnp.float32)
    scores = jnp.einsum("rhtd,rhsd->rhts", query, key, preferred_element_type=jnp.float32) * scale
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return jnp.where(same, scores, jnp.finfo(jnp.float32).min)
