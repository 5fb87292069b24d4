"""Combinations that look at each parameter by itself, as optax transformations: leaves [K, ...] in, [...] out."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.balancing import options
from mtl_jax.balancing.combination import first_key, next_key, zero_unused
from mtl_jax.sharing.gram import accumulation_dtype, task_count


class GradDropState(NamedTuple):
    """key: raw data uint32[2] of the key of the next update."""

    key: jax.Array


def graddrop(leak=None, seed: int | jax.Array = 0) -> optax.GradientTransformationExtraArgs:
    """For each parameter one sign is drawn, and the gradients of the other sign are dropped; the rest are summed.

    The positive sign has probability ½ (1 + Σg / Σ|g|) (Chen et al. 2020, algorithm 1, f the identity). `leak`, one
    number in [0, 1] for each task, lets this share of a task's gradient pass in any case; 0 without it. `update(...,
    key=)` draws from that key instead of its own. ValueError for another range, and at update for another length.
    """
    if leak is not None:
        leak = options.task_values("leak", leak)
        if np.any(leak > 1):
            raise ValueError(f"leak must be one number in [0, 1] for each task, not {leak.tolist()}")

    def init(params) -> GradDropState:
        return GradDropState(first_key(seed))

    def update(updates, state: GradDropState, params=None, *, present=None, key=None, **extra):
        tasks, dtype = task_count(updates), accumulation_dtype(updates)
        present = jnp.ones(tasks, bool) if present is None else present
        kept = jnp.zeros(tasks, dtype) if leak is None else options.task_array("leak", leak, tasks, dtype)
        after, drawn = next_key(state.key)
        drawn = drawn if key is None else key
        leaves, structure = jax.tree.flatten(updates)

        def of_leaf(index: int, leaf: jax.Array) -> jax.Array:
            g = zero_unused(present, leaf.astype(dtype))
            total = jnp.sum(jnp.abs(g), axis=0)
            some = total > 0
            purity = 0.5 * (1.0 + jnp.where(some, jnp.sum(g, axis=0) / jnp.where(some, total, 1.0), 0.0))
            positive = purity > jax.random.uniform(jax.random.fold_in(drawn, index), purity.shape, dtype)
            passes = jnp.where(positive[None], g > 0, g < 0).astype(dtype)
            share = kept.reshape((-1, *(1,) * (g.ndim - 1)))
            return jnp.sum((share + (1.0 - share) * passes) * g, axis=0).astype(leaf.dtype)

        combined = [of_leaf(index, leaf) for index, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, combined), GradDropState(after)

    return optax.GradientTransformationExtraArgs(init, update)


def trimmed_mean(trim: int = 1) -> optax.GradientTransformationExtraArgs:
    """For each parameter the mean without the `trim` least and the `trim` largest gradients (Yin et al. 2018,
    definition 2).

    Where fewer than 2 trim + 1 tasks are present, as many are trimmed as leave one or two. Raises ValueError unless
    trim ≥ 0, and at update for K ≤ 2 trim.
    """
    options.check_integer("trim", trim, 0)

    def update(updates, state, params=None, *, present: jax.Array | None = None, **extra):
        tasks, dtype = task_count(updates), accumulation_dtype(updates)
        if tasks <= 2 * trim:
            raise ValueError(f"trimmed_mean({trim}) needs more than {2 * trim} tasks, not {tasks}")
        present = jnp.ones(tasks, bool) if present is None else present
        count = jnp.sum(present.astype(jnp.int32))
        cut = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
        rank = jnp.arange(tasks)
        inside = (rank >= cut) & (rank < count - cut)
        share = 1.0 / jnp.maximum(count - 2 * cut, 1).astype(dtype)

        def of_leaf(leaf: jax.Array) -> jax.Array:
            shape = (-1, *(1,) * (leaf.ndim - 1))
            ordered = jnp.sort(jnp.where(present.reshape(shape), leaf.astype(dtype), jnp.inf), axis=0)  # absent: last
            return (share * jnp.sum(zero_unused(inside, ordered), axis=0)).astype(leaf.dtype)

        return jax.tree.map(of_leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
