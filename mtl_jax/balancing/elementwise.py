"""Combinations that treat each parameter separately, as optax transformations: leaves [K, ...] in, [...] out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.balancing import options
from mtl_jax.balancing.gradient_combination import Transform, first_key, next_key, transformation, zero_unused
from mtl_jax.sharing.gram import Tree, accumulation_dtype, task_count


class GradDropState(NamedTuple):
    """key: raw data uint32[2] of the key of the next update."""

    key: jax.Array


def graddrop(leak: Sequence[float] | None = None, seed: int | jax.Array = 0) -> Transform:
    """For each parameter one sign is drawn, gradients of the other sign are dropped, and the remaining ones are summed.

    The positive sign has probability ½ (1 + Σg / Σ|g|) (Chen et al. 2020, algorithm 1, f the identity). `leak`, one
    number in [0, 1] for each task, is the fraction of a task's gradient that always passes; None for 0. `update(...,
    key=)` draws from that key instead of its own. Raises ValueError for another range, and at update for another
    length.
    """
    leaks = None if leak is None else options.task_values("leak", leak)
    if leaks is not None and np.any(leaks > 1):
        raise ValueError(f"leak must be one number in [0, 1] for each task, not {leaks.tolist()}")

    def init(params: Tree) -> GradDropState:
        return GradDropState(first_key(seed))

    def update(
        updates: Tree,
        state: GradDropState,
        params: Tree = None,
        *,
        present: jax.Array | None = None,
        key: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, GradDropState]:
        tasks, dtype = task_count(updates), accumulation_dtype(updates)
        present = jnp.ones(tasks, bool) if present is None else present
        passing = jnp.zeros(tasks, dtype) if leaks is None else options.task_array("leak", leaks, tasks, dtype)
        raw_key, own_key = next_key(state.key)
        draw_key = own_key if key is None else key
        leaves, structure = jax.tree.flatten(updates)

        def combined(index: int, leaf: jax.Array) -> jax.Array:
            g = zero_unused(present, leaf.astype(dtype))
            total = jnp.sum(jnp.abs(g), axis=0)
            some = total > 0
            purity = 0.5 * (1.0 + jnp.where(some, jnp.sum(g, axis=0) / jnp.where(some, total, 1.0), 0.0))
            positive = purity > jax.random.uniform(jax.random.fold_in(draw_key, index), purity.shape, dtype)
            passes = jnp.where(positive[None], g > 0, g < 0).astype(dtype)
            fraction = passing.reshape((-1, *(1,) * (g.ndim - 1)))
            return jnp.sum((fraction + (1.0 - fraction) * passes) * g, axis=0).astype(leaf.dtype)

        new = [combined(index, leaf) for index, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, new), GradDropState(raw_key)

    return transformation(init, update)


def trimmed_mean(trim: int = 1) -> Transform:
    """For each parameter the mean without the `trim` smallest and the `trim` largest gradients (Yin et al. 2018,
    definition 2).

    If fewer than 2 trim + 1 tasks are present, all but one or two are trimmed. Raises ValueError unless trim ≥ 0, and
    at update for K ≤ 2 trim.
    """
    options.check_integer("trim", trim, 0)

    def update(
        updates: Tree, state: optax.EmptyState, params: Tree = None, *, present: jax.Array | None = None, **extra: Any
    ) -> tuple[Tree, optax.EmptyState]:
        tasks, dtype = task_count(updates), accumulation_dtype(updates)
        if tasks <= 2 * trim:
            raise ValueError(f"trimmed_mean({trim}) needs more than {2 * trim} tasks, not {tasks}")
        present = jnp.ones(tasks, bool) if present is None else present
        count = jnp.sum(present.astype(jnp.int32))
        cut = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
        rank = jnp.arange(tasks)
        inside = (rank >= cut) & (rank < count - cut)
        weight = 1.0 / jnp.maximum(count - 2 * cut, 1).astype(dtype)

        def combined(leaf: jax.Array) -> jax.Array:
            shape = (-1, *(1,) * (leaf.ndim - 1))
            ordered = jnp.sort(jnp.where(present.reshape(shape), leaf.astype(dtype), jnp.inf), axis=0)  # absent: last
            return (weight * jnp.sum(zero_unused(inside, ordered), axis=0)).astype(leaf.dtype)

        return jax.tree.map(combined, updates), state

    return transformation(lambda params: optax.EmptyState(), update)
