"""Which task owns which slice of which leaf, and clipping by owner.

A slice that exactly one task uses (its head, its column) belongs to that task; all other slices are shared. Clipping by
owner gives a task that shares nothing the path that it has when it is trained alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.ownership import SliceOwners

FlatParams = Mapping[str, jax.Array]


def squared_norms(flat: FlatParams, groups: SliceOwners, count: int) -> jax.Array:
    """Squared norm of the slices of each owner group, float32 [K + 1]; the last is that of the shared ones."""
    total = jnp.zeros((count + 1,), jnp.float32)
    for path, leaf in flat.items():
        squares = jnp.square(leaf.astype(jnp.float32))
        total = total.at[np.asarray(groups[path])].add(squares.sum(axis=tuple(range(1, squares.ndim))))
    return total


def scale(flat: FlatParams, groups: SliceOwners, factors: jax.Array) -> dict[str, jax.Array]:
    """Multiplies every slice by the factor of its owner group, float32 [K + 1]."""
    scaled = {}
    for path, leaf in flat.items():
        by_slice = factors[np.asarray(groups[path])]
        scaled[path] = leaf * by_slice.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return scaled


def clip(flat: FlatParams, groups: SliceOwners, count: int, largest: float) -> tuple[dict[str, jax.Array], jax.Array]:
    """Scales each owner group's gradient to a norm of at most `largest` (0 = off). Returns it, and norms [K + 1]."""
    squares = squared_norms(flat, groups, count)
    zero = squares == 0  # where √ has no derivative, and hypergradients pass through
    norms = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
    if not largest:
        return dict(flat), norms
    return scale(flat, groups, jnp.minimum(1.0, largest / jnp.maximum(norms, 1e-12))), norms
