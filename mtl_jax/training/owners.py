"""Which task owns which slice of which leaf, and clipping by owner.

A slice that exactly one task uses (its head, its column) belongs to that task; all others are shared. Everything
done per owner here gives a task with nothing shared the path that it has when it is trained alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.ownership import sole_tasks

Flat = Mapping[str, jax.Array]
SliceOwners = Mapping[str, tuple[int, ...]]


def slice_owners(paths, owners: Mapping[str, tuple[int, ...]], tasks: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """For each path the owner group of each slice of its leaf: 0..K-1 a task, K shared by several.

    Leaves of layers have one entry for each of their O slices; leaves of heads, which have no leading owner axis,
    have one entry.
    """
    result = {}
    for path in paths:
        layer, *rest = path.split("/")
        if layer == "heads":
            result[path] = (tasks.index(rest[0]),)
        else:
            result[path] = tuple(len(tasks) if task is None else task for task in sole_tasks(owners[layer]))
    return result


def squared_norms(flat: Flat, groups: SliceOwners, count: int) -> jax.Array:
    """Squared norm of the slices of each owner group, float32 [K + 1]; the last is that of the shared ones."""
    total = jnp.zeros((count + 1,), jnp.float32)
    for path, leaf in flat.items():
        squares = _per_slice(path, jnp.square(leaf.astype(jnp.float32)))
        total = total.at[np.asarray(groups[path])].add(squares)
    return total


def scale(flat: Flat, groups: SliceOwners, factors: jax.Array) -> dict[str, jax.Array]:
    """Multiplies every slice by the factor of its owner group, float32 [K + 1]."""
    scaled = {}
    for path, leaf in flat.items():
        if path.startswith("heads/"):
            scaled[path] = leaf * factors[groups[path][0]]
        else:
            by_slice = factors[np.asarray(groups[path])]
            scaled[path] = leaf * by_slice.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return scaled


def clip(flat: Flat, groups: SliceOwners, count: int, largest: float) -> tuple[dict[str, jax.Array], jax.Array]:
    """Scales each owner group's gradient to a norm of at most `largest` (0 = off). Returns it, and norms [K + 1]."""
    squares = squared_norms(flat, groups, count)
    zero = squares == 0  # where √ has no derivative, and hypergradients pass through
    norms = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
    if not largest:
        return dict(flat), norms
    return scale(flat, groups, jnp.minimum(1.0, largest / jnp.maximum(norms, 1e-12))), norms


def _per_slice(path, squares):
    return squares.sum()[None] if path.startswith("heads/") else squares.sum(axis=tuple(range(1, squares.ndim)))
