"""The interface of a weighting, and functions that several of them use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing import options

State: TypeAlias = Any  # a pytree of arrays, of a type of the method's own


class Weighting(NamedTuple):
    """init(K) -> state; update(gram float[K, K], state, *, key, present bool[K]) -> (weights float[K], state).

    The combined gradient is Σ_k weights_k g_k. `key` is new at each update. Absent tasks get weight 0, and the others
    the weights of the method on the tasks present. `halves`: instead of the Gram matrix the method reads the products
    [K, K] between gradients of two independent halves of the batch, entry (i, j) = g_i of the first · g_j of the
    second, which are neither symmetric nor positive; the gradients combined are then the means of the halves.
    """

    init: Callable[[int | None], State]
    update: Callable[..., tuple[jax.Array, State]]
    halves: bool = False


def stateless(weights: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Weighting:
    """A weighting from (gram, key, present) -> weights; the gram has zeros for absent tasks."""

    def update(gram: jax.Array, state: tuple, *, key: jax.Array, present: jax.Array) -> tuple[jax.Array, tuple]:
        return weights(mask_absent(gram, present), key, present), state

    return Weighting(lambda count: (), update)


def mask_absent(gram: jax.Array, present: jax.Array) -> jax.Array:
    """The matrix with zeros in rows and columns of absent tasks, NaN there included."""
    return jnp.where(present[:, None] & present[None, :], gram, 0.0)


def require_task_count(name: str, count: int | None) -> int:
    """K, for a method that keeps a state for each task. Raises ValueError if it was not given."""
    if count is None:
        raise ValueError(f"{name} keeps a state for each task: pass their number, tasks=K")
    return count


def normalised_preference(gram: jax.Array, present: jax.Array, preference: np.ndarray | None = None) -> jax.Array:
    """The preference over the tasks present, with sum 1; equal without one, and if all tasks present have preference
    0."""
    on = present.astype(gram.dtype)
    equal = on / jnp.maximum(jnp.sum(on), 1.0)
    if preference is None:
        return equal
    weights = options.task_array("preference", preference, present.size, gram.dtype) * on
    total = jnp.sum(weights)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), equal)


def scale_gram(gram: jax.Array) -> jax.Array:
    """The Gram matrix divided by its largest diagonal entry, a constant to derivatives; zeros stay. For methods that do
    not depend on a common scale.
    """
    return safe_divide(gram, jax.lax.stop_gradient(jnp.max(jnp.diagonal(gram))))


def safe_divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b where b > 0, else 0, with finite derivatives."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def cosines(gram: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines [K, K] and 1/‖g_k‖ [K]; both 0 for absent tasks and gradients of zero."""
    squares = jnp.diagonal(gram)
    live = present & (squares > 0)
    inverse = jnp.where(live, jax.lax.rsqrt(jnp.where(live, squares, 1.0)), 0.0)
    return gram * inverse[:, None] * inverse[None, :], inverse


def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x where x > 0, else 0 with derivative 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b at highest precision."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
