"""Scaled dot-product attention inside the segments of packed rows (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mtl_jax.models.dropout import Noise, attention_dropout
from mtl_jax.models.row_chunks import in_row_chunks, is_single_cpu

CHUNK_BYTES = 1 << 22  # bytes of scores that are computed at once on CPU: about the size of its caches
MAX_CHUNKS = 8  # each chunk makes the program longer


def attend(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, noise: Noise | None) -> jax.Array:
    """Attention of each token to the tokens of its own segment.

    query, key, value [R, T, H, D/H], segment int32[R, T] -> [R, T, H, D/H], in the dtype of the values. Scores and
    softmax are float32. Padding (segment 0) attends to padding, so that no row of the softmax is empty.
    """
    chex.assert_rank(query, 4)
    chex.assert_equal_shape([query, key, value])
    chex.assert_shape(segment, query.shape[:2])
    chex.assert_type(segment, int)
    arrays = (query, key, value, segment)
    if noise is not None and noise.attention_rate is not None:

        def dropped(query, key, value, segment, keys):
            return _by_softmax(query, key, value, segment, noise._replace(keys=keys))

        return in_row_chunks(dropped, _chunk_count(query), *arrays, noise.keys)
    if jax.default_backend() == "cpu":
        return in_row_chunks(attend_by_sums, _chunk_count(query), *arrays)
    return _by_softmax(*arrays, None)


def _chunk_count(query: jax.Array) -> int:
    rows, tokens, heads, _ = query.shape
    return min(MAX_CHUNKS, -(-4 * rows * heads * tokens * tokens // CHUNK_BYTES)) if is_single_cpu() else 1


def _by_softmax(query, key, value, segment, noise):
    query, key, value = map(_heads_first, (query, key, value))
    weights = jax.nn.softmax(_scores(query, key, segment), axis=-1).astype(value.dtype)
    weights = attention_dropout(noise, 0, weights)
    return jnp.swapaxes(jnp.einsum("rhts,rhsd->rhtd", weights, value), 1, 2)


@jax.custom_vjp
def attend_by_sums(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array) -> jax.Array:
    """As `attend` without dropout, in the form that is fastest on CPU.

    With e = exp(scores − their maximum), Σ e·v and Σ e come from one product, by a column of ones next to the values,
    and the division after it is of D/H numbers instead of T. The gradient is written by hand, with products whose
    results are transposed where XLA would transpose e: forward and backward pass take 0.8 of the time of a softmax
    under autodiff. It can be differentiated again, in either mode; forward mode only needs `attend_by_sums.fun`.
    """
    return _sums(query, key, value, segment)[0]


def _sums(query, key, value, segment):
    """(weighted mean of the values; e, and 1 / Σ e float32 [R, H, T, 1])."""
    first, second, third = map(_heads_first, (query, key, value))
    scores = _scores(first, second, segment)
    maximum = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    exponential = jnp.exp(scores - maximum).astype(value.dtype)
    ones = jnp.ones((*third.shape[:-1], 1), value.dtype)
    sums = _product("rhts,rhsd->rhtd", exponential, jnp.concatenate([third, ones], axis=-1))
    inverse = 1.0 / sums[..., -1:]
    return jnp.swapaxes((sums[..., :-1] * inverse).astype(value.dtype), 1, 2), (exponential, inverse)


def _sums_forward(query, key, value, segment):
    mean, residuals = _sums(query, key, value, segment)
    return mean, (query, key, value, mean, *residuals)


def _sums_backward(residuals, gradient):
    query, key, value, mean, exponential, inverse = residuals
    scale = jnp.asarray(query.shape[-1] ** -0.5, jnp.float32)
    projection = jnp.sum(gradient.astype(jnp.float32) * mean.astype(jnp.float32), axis=-1)  # [R, T, H]
    sums_gradient = _heads_first(gradient).astype(jnp.float32) * inverse
    projection = jnp.swapaxes(projection, 1, 2)[..., None] * inverse
    sums_gradient = sums_gradient.astype(value.dtype)
    value_gradient = _product("rhts,rhtd->rhds", exponential, sums_gradient)
    weights_gradient = _product("rhtd,rhsd->rhts", sums_gradient, _heads_first(value)) - projection
    scores_gradient = (exponential.astype(jnp.float32) * weights_gradient).astype(value.dtype)
    query_gradient = scale * _product("rhts,rhsd->rhtd", scores_gradient, _heads_first(key))
    key_gradient = scale * _product("rhts,rhtd->rhds", scores_gradient, _heads_first(query))
    by_token = jnp.swapaxes(query_gradient, 1, 2), jnp.moveaxis(key_gradient, 3, 1), jnp.moveaxis(value_gradient, 3, 1)
    return (*(g.astype(value.dtype) for g in by_token), None)


attend_by_sums.defvjp(_sums_forward, _sums_backward)


def _heads_first(x: jax.Array) -> jax.Array:
    """[R, T, H, D/H] -> [R, H, T, D/H]: on CPU the products with it take half the time."""
    return jnp.swapaxes(x, 1, 2)


def _scores(query: jax.Array, key: jax.Array, segment: jax.Array) -> jax.Array:
    """float32 [R, H, T, T] of query and key [R, H, T, D/H]; next to −∞ between segments."""
    scale = jnp.asarray(query.shape[-1] ** -0.5, jnp.float32)
    scores = _product("rhtd,rhsd->rhts", query, key) * scale
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return jnp.where(same, scores, jnp.finfo(jnp.float32).min)


def _product(form: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)
