"""Scaled dot-product attention inside the segments of packed rows (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.activation_sharding import gather_tokens
from mtl_jax.models.dropout import Noise, attention_dropout


class Prefix(NamedTuple):
    """Keys and values [P, D'] before those of every text, see `adapters.prefix`."""

    key: jax.Array
    value: jax.Array


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment: jax.Array,
    noise: Noise | None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    window: int = 0,
    causal: bool = False,
    softcap: float = 0.0,
    prefix: Prefix | None = None,
) -> jax.Array:
    """Attention of each token to the tokens of its own segment.

    Args:
      query: [R, T, H, D/H].
      key, value: the same, or with a divisor of H as number of heads: each serves as many consecutive queries.
      segment: int32[R, T]. Padding (segment 0) attends to padding, so that no row of the softmax is empty.
      noise: drops attention weights.
      bias: float32 [H, T, T] or [R, H, T, T], added to the scores.
      scale: of the products; None: (D/H)^−½.
      window: the largest distance between tokens that attend to each other; 0: any.
      causal: whether tokens attend to none that follow.
      softcap: c of c · tanh(scores / c), which the scaled products become (Gemma 2); 0: they stay.
      prefix: further keys and values, which all tokens attend to.

    Returns:
      [R, T, H, D/H], in the dtype of the values. Scores and softmax are float32.
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape([key, value])
    chex.assert_shape(segment, query.shape[:2])
    chex.assert_type(segment, int)
    key, value = gather_tokens(key), gather_tokens(value)
    first = 0 if prefix is None else len(prefix.key)
    if prefix is not None:
        key, value = (_after_prefix(*pair) for pair in ((prefix.key, key), (prefix.value, value)))
    if (groups := query.shape[2] // key.shape[2]) > 1:
        key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # heads first: faster products on CPU
    scores = _scores(query, key, query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = jnp.tanh(scores / jnp.float32(softcap)) * jnp.float32(softcap)
    if bias is not None:
        bias = jnp.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(first, 0)]) if first else bias
        scores = scores + (bias if bias.ndim == 4 else jnp.broadcast_to(bias[None], scores.shape))
    weights = jax.nn.softmax(_masked(scores, segment, window, causal, first), axis=-1).astype(value.dtype)
    weights = attention_dropout(noise, 0, weights)
    return jnp.swapaxes(jnp.einsum("rhts,rhsd->rhtd", weights, value), 1, 2)


def _scores(query: jax.Array, key: jax.Array, scale: float) -> jax.Array:
    """float32 [R, H, T, T] of query and key [R, H, T, D/H]."""
    product = jnp.einsum("rhtd,rhsd->rhts", query, key, preferred_element_type=jnp.float32)
    return product * jnp.asarray(scale, jnp.float32)


def _after_prefix(prefix: jax.Array, array: jax.Array) -> jax.Array:
    """[R, P + T, H, D/H] of a prefix [P, D] and keys or values [R, T, H, D/H]."""
    rows = prefix.reshape(1, -1, *array.shape[2:]).astype(array.dtype)
    return jnp.concatenate([jnp.broadcast_to(rows, (array.shape[0], *rows.shape[1:])), array], axis=1)


def _masked(scores: jax.Array, segment: jax.Array, window: int, causal: bool, first: int) -> jax.Array:
    """Scores [R, H, T, P + T], next to −∞ between segments, beyond the window and, with `causal`, of what follows; not
    of the P = `first` ones.
    """
    allowed = segment[:, None, :, None] == segment[:, None, None, :]
    if window or causal:
        place = np.arange(segment.shape[1])
        back = place[:, None] - place[None, :]
        near = np.abs(back) <= (window or len(place))
        allowed = allowed & jnp.asarray(near & (back >= 0) if causal else near)[None, None]
    if first:
        allowed = jnp.pad(allowed, [(0, 0)] * 3 + [(first, 0)], constant_values=True)
    return jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
