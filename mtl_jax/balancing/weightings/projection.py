"""Each gradient is changed against the others, one after another in random order: PCGrad and Gradient Vaccine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.options import Number
from mtl_jax.balancing.weightings.base import Weighting, dot, mask_absent, require_task_count, safe_sqrt, stateless

# (coefficients [K] of a task's gradient so far, index of another task, state of the pair) -> (change of the other's
# coefficient, new state of the pair)
Move: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def pcgrad() -> Weighting:
    """Each gradient loses its components against conflicting ones, in random order (Yu et al. 2020, algorithm 1).

    The projected gradients are summed, as in the paper. The order is drawn anew for each task and update.
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        squares = jnp.diagonal(gram)

        def move(coefficients: jax.Array, other: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
            product = dot(gram[other], coefficients)
            conflict = (product < 0) & (squares[other] > 0)
            return jnp.where(conflict, -product / jnp.where(conflict, squares[other], 1.0), 0.0), state

        return _sum_of_moved(move, jnp.zeros_like(gram), key, present)[0]

    return stateless(weights)


def gradvac(beta: Number = 1e-2, target: float = 0.0) -> Weighting:
    """Gradient Vaccine: a cosine to another gradient that is below its moving average is raised to it (Wang et al.
    2021, algorithm 1 and equation 3).

    The gradients are summed, as in PCGrad. The state holds the averages [K, K] of the cosine between task i's gradient,
    as changed so far, and task j's: φ ← (1 − β) φ + β cos, starting at `target`. With β = 0 and target 0 it is PCGrad.
    Raises ValueError unless 0 ≤ β ≤ 1 and −1 ≤ target ≤ 1.
    """
    options.check_interval("beta", beta, 0.0, 1.0)
    options.check_interval("target", target, -1.0, 1.0)

    def init(count: int | None) -> jax.Array:
        tasks = require_task_count("gradvac", count)
        return jnp.full((tasks, tasks), float(target))

    def update(gram: jax.Array, state: jax.Array, *, key: jax.Array, present: jax.Array):
        gram = mask_absent(gram, present)
        rate = options.as_scalar(beta, gram.dtype)
        norms = safe_sqrt(jnp.diagonal(gram))

        def move(coefficients: jax.Array, other: jax.Array, aim: jax.Array) -> tuple[jax.Array, jax.Array]:
            along = dot(gram[other], coefficients)
            norm = safe_sqrt(dot(coefficients, dot(gram, coefficients)))
            length = norm * norms[other]
            live = length > 0
            cosine = jnp.clip(jnp.where(live, along / jnp.where(live, length, 1.0), 0.0), -1.0, 1.0)
            sine, sine_aimed = safe_sqrt(1.0 - cosine**2), safe_sqrt(1.0 - aim**2)
            act = live & (cosine < aim) & (sine_aimed > 0)  # a cosine of 1 cannot be reached
            below = jnp.where(act, norms[other] * sine_aimed, 1.0)
            change = jnp.where(act, norm * (aim * sine - cosine * sine_aimed) / below, 0.0)
            return change, jnp.where(live, (1.0 - rate) * aim + rate * cosine, aim)

        weights, averages = _sum_of_moved(move, state.astype(gram.dtype), key, present)
        return weights, jax.lax.stop_gradient(averages).astype(state.dtype)

    return Weighting(init, update)


def _sum_of_moved(move: Move, states: jax.Array, key: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ over tasks of the coefficients [K] of their changed gradients, and the new states of the pairs [K, K]."""
    count = present.size

    def moved(task: jax.Array, task_key: jax.Array, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        order = jax.random.permutation(task_key, count)

        def against(step: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            coefficients, states = carry
            other = order[step]
            change, new = move(coefficients, other, states[other])
            acts = (other != task) & present[other] & present[task]
            change, new = jnp.where(acts, change, 0.0), jnp.where(acts, new, states[other])
            return coefficients.at[other].add(change), states.at[other].set(new)

        unchanged = jnp.zeros(count, states.dtype).at[task].set(present[task].astype(states.dtype))
        return jax.lax.fori_loop(0, count, against, (unchanged, states))

    coefficients, states = jax.vmap(moved)(jnp.arange(count), jax.random.split(key, count), states)
    return jnp.sum(coefficients, axis=0), states
