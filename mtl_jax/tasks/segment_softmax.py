"""Softmax and argmax over groups of positions of a row: the words of a text, the choices of a record."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def log_softmax(scores: jax.Array, group: jax.Array, usable: jax.Array) -> jax.Array:
    """Log-softmax over the usable positions of each group, float32 [R, Q]; 0 at others.

    Args:
      scores: [R, Q].
      group: int32[R, Q], 1 ... Q, 0 in the padding.
      usable: bool[R, Q].
    """
    _check_shapes(scores, group, usable)
    scores = jnp.where(usable, scores.astype(jnp.float32), 0.0)
    maximum = jax.lax.stop_gradient(segment_max(scores, group, usable))
    # positions that are not usable never enter the exponential: its overflow would reach the gradient
    shifted = jnp.where(usable, scores - maximum, 0.0)
    total = _by_group(jax.ops.segment_sum, jnp.where(usable, jnp.exp(shifted), 0.0), group)
    return jnp.where(usable, shifted - jnp.log(jnp.where(usable, total, 1.0)), 0.0)


def segment_max(values: jax.Array, group: jax.Array, usable: jax.Array) -> jax.Array:
    """The largest of the usable values of each group, at all of its positions; -inf where there is none. [R, Q]."""
    _check_shapes(values, group, usable)
    lowest = -jnp.inf if jnp.issubdtype(values.dtype, jnp.floating) else jnp.iinfo(values.dtype).min
    return _by_group(jax.ops.segment_max, jnp.where(usable, values, jnp.asarray(lowest, values.dtype)), group)


def first_argmax(scores: jax.Array, group: jax.Array, usable: jax.Array) -> jax.Array:
    """bool[R, Q], True at the first usable position of each group that has its highest score."""
    best = usable & (scores == segment_max(scores, group, usable))
    at = jnp.broadcast_to(jnp.arange(scores.shape[-1], dtype=jnp.int32), scores.shape)
    return best & (at == -segment_max(-at, group, best))


def _check_shapes(values: jax.Array, group: jax.Array, usable: jax.Array) -> None:
    chex.assert_rank(values, 2)
    chex.assert_equal_shape([values, group, usable])
    chex.assert_type([group, usable], [int, bool])


def _by_group(reduce, values: jax.Array, group: jax.Array) -> jax.Array:
    def reduce_row(values, group):
        return reduce(values, group, group.shape[0] + 1)[group]

    return jax.vmap(reduce_row)(values, group)
