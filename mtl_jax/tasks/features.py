"""Inputs of the heads: one vector per example or word of the packed rows; and sums by example."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from mtl_jax.tasks.base import Features

POOLS = ("mean", "first", "last", "max")


def pool(features: Features, how: str, among: jax.Array | None = None) -> jax.Array:
    """One vector for each example, float32 [R, E, D]; zeros for empty slots.

    how = "mean" or "max" over the example's tokens, "first" the token at `start` ([CLS] in the BERT family), "last" the
    one that a causal model has read all others for. `among`
    bool[R, T]: mean and max over these tokens only; zeros for an example without any.
    """
    chex.assert_rank(features.hidden, 3)
    chex.assert_shape(features.segment, features.hidden.shape[:2])
    chex.assert_shape([features.start, features.length], (features.hidden.shape[0], None))
    if among is None:
        return {"mean": _mean, "first": _first, "last": _last, "max": _max}[how](features)
    chex.assert_equal_shape([among, features.segment])
    return {"mean": _mean_among, "max": _max_among}[how](features, among)


def gather_tokens(vectors: jax.Array, index: jax.Array) -> jax.Array:
    """The vectors `[R, T, D]` at token positions `index` int32[R, Q]: [R, Q, D]."""
    chex.assert_shape([vectors, index], [(index.shape[0], None, None), (vectors.shape[0], None)])
    return jnp.take_along_axis(vectors, index[:, :, None], axis=1, mode="clip")


def sum_by_example(values: jax.Array, slot: jax.Array, slots: int | None) -> jax.Array:
    """Sums `values` float32[R, Q] by example slot: [R, E] with E = `slots`; None leaves them as they are."""
    chex.assert_equal_shape([values, slot])
    if slots is None:
        return values
    return jnp.einsum("rq,rqe->re", values, jax.nn.one_hot(slot, slots, dtype=values.dtype), precision="highest")


def repeat_at_tokens(values: jax.Array, segment: jax.Array) -> jax.Array:
    """Values of examples [R, E, C] repeated at each of their tokens: [R, T, C]; zeros in the padding, `segment` = 0."""
    chex.assert_shape([values, segment], [(segment.shape[0], None, None), (values.shape[0], None)])
    padded = jnp.pad(values, ((0, 0), (1, 0), (0, 0)))
    return jnp.take_along_axis(padded, segment[:, :, None], axis=1, mode="clip")


def _mean(features: Features) -> jax.Array:
    total = jnp.einsum("rte,rtd->red", _member(features), features.hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(features.length, 1).astype(jnp.float32)[:, :, None]


def _mean_among(features: Features, among: jax.Array) -> jax.Array:
    member = _member(features) * among[:, :, None].astype(jnp.float32)
    total = jnp.einsum("rte,rtd->red", member, features.hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(member.sum(axis=1), 1.0)[:, :, None]


def _member(features: Features) -> jax.Array:
    # with this matrix float32[R, T, E] a sum by example is one batched matmul forward and back, no scatter
    return jax.nn.one_hot(features.segment - 1, features.start.shape[1], dtype=jnp.float32)


def _first(features: Features) -> jax.Array:
    return _blank_empty(features, gather_tokens(features.hidden, features.start).astype(jnp.float32))


def _last(features: Features) -> jax.Array:
    last = jnp.maximum(features.start + features.length - 1, 0)
    return _blank_empty(features, gather_tokens(features.hidden, last).astype(jnp.float32))


def _max(features: Features) -> jax.Array:
    # a running maximum that restarts at segments: linear in T for any number of examples in the row
    before = jnp.pad(features.segment, ((0, 0), (1, 0)))[:, :-1]
    restart = jnp.broadcast_to((features.segment != before)[:, :, None], features.hidden.shape)

    def join(left: Any, right: Any) -> Any:
        (left_restart, left_max), (right_restart, right_max) = left, right
        return left_restart | right_restart, jnp.where(right_restart, right_max, jnp.maximum(left_max, right_max))

    _, running = jax.lax.associative_scan(join, (restart, features.hidden), axis=1)
    last = jnp.maximum(features.start + features.length - 1, 0)
    return _blank_empty(features, gather_tokens(running, last).astype(jnp.float32))


def _max_among(features: Features, among: jax.Array) -> jax.Array:
    lowest = jnp.finfo(features.hidden.dtype).min
    maximum = _max(features._replace(hidden=jnp.where(among[:, :, None], features.hidden, lowest)))
    exists = jnp.einsum("rte,rt->re", _member(features), among.astype(jnp.float32)) > 0
    return jnp.where(exists[:, :, None], maximum, 0.0)


def _blank_empty(features: Features, vectors: jax.Array) -> jax.Array:
    return jnp.where((features.length > 0)[:, :, None], vectors, 0.0)
