"""Selection of gradients that agree: Krum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.weightings.base import Weighting, stateless


def krum(byzantine: int = 1, selected: int = 1) -> Weighting:
    """The gradient nearest to its neighbours, or the mean of the `selected` nearest ones (Blanchard et al. 2017, Krum
    and Multi-Krum).

    The score of a gradient is the sum of squared distances to its n − f − 2 nearest neighbours (at least one), n the
    tasks present, f = `byzantine` the number of untrusted ones. Raises ValueError unless f ≥ 0, selected ≥ 1, and at
    update for K < f + 3 or K < selected.
    """
    options.check_integer("byzantine", byzantine, 0)
    options.check_integer("selected", selected, 1)

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        tasks = gram.shape[0]
        if tasks < max(byzantine + 3, selected):
            raise ValueError(f"krum({byzantine}, {selected}) needs at least {max(byzantine + 3, selected)} tasks")
        squares = jnp.diagonal(gram)
        distances = jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, 0.0)
        pairs = present[:, None] & present[None, :] & ~jnp.eye(tasks, dtype=bool)
        count = jnp.sum(present.astype(jnp.int32))
        near = jnp.sort(jnp.where(pairs, distances, jnp.inf), axis=1)
        counted = (jnp.arange(tasks) < jnp.maximum(count - byzantine - 2, 1))[None, :] & jnp.isfinite(near)
        scores = jnp.where(present, jnp.sum(jnp.where(counted, near, 0.0), axis=1), jnp.inf)
        rank = jnp.argsort(jnp.argsort(scores))
        chosen = present & (rank < selected)
        return chosen.astype(gram.dtype) / jnp.maximum(jnp.sum(chosen.astype(gram.dtype)), 1.0)

    return stateless(weights)
