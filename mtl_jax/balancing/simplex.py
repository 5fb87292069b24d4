"""Minimum of a convex function over the probability simplex, by a primal-dual interior-point method of fixed length."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Derivatives = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def simplex_minimum(derivatives: Derivatives, present: jax.Array, dtype, iterations: int = 60) -> jax.Array:
    """argmin F(w) over w ≥ 0, Σ w = 1, w_k = 0 where not present.

    Args:
      derivatives: w [K] -> (gradient [K], positive semi-definite Hessian [K, K]), of order 1.
      present: bool[K].
      iterations: Newton steps, each a K×K solve; a quadratic needs some 15 to rounding, a norm some 30.

    Returns:
      float[K]; zeros where no task is present. Where the minimum is not unique, one inside the set of minima.
    """
    on = present.astype(dtype)
    count = jnp.maximum(jnp.sum(on), 1.0)
    both = on[:, None] * on[None, :]
    eps = jnp.finfo(dtype).eps
    tiny = eps**2

    def step(_, carry):
        w, z, multiplier = carry
        gradient, hessian = derivatives(w * on)
        gap = jnp.sum(w * z * on) / count
        target = jnp.maximum(0.2 * gap, 0.1 * eps)  # below rounding the steps go on for the gradient's sake
        barrier = jnp.where(present, z / w, 1.0)  # an absent task stands apart and does not move
        system = hessian * both + jnp.diag(barrier)
        residual = jnp.where(present, gradient + multiplier - target / w, 0.0)
        solved = jnp.linalg.solve(system, jnp.stack([-residual, on], axis=1))
        change = (jnp.sum(on * w) - 1.0 + jnp.sum(on * solved[:, 0])) / jnp.maximum(jnp.sum(on * solved[:, 1]), tiny)
        dw = (solved[:, 0] - change * solved[:, 1]) * on
        dz = (target / w - z - barrier * dw) * on
        length = jnp.minimum(_to_boundary(w, dw), _to_boundary(z, dz))
        new_w = jnp.maximum(w + length * dw, tiny)
        new = new_w, jnp.maximum(z + length * dz, tiny), multiplier + length * change
        good = jnp.all(jnp.isfinite(jnp.concatenate([new[0], new[1], new[2][None]])))
        return jax.tree.map(lambda fresh, kept: jnp.where(good, fresh, kept), new, carry)

    start = jnp.where(present, 1.0 / count, 1.0), jnp.ones_like(on), jnp.zeros((), dtype)
    w, _, _ = jax.lax.fori_loop(0, iterations, step, start)
    w = w * on
    return w / jnp.maximum(jnp.sum(w), tiny)


def _to_boundary(x: jax.Array, dx: jax.Array) -> jax.Array:
    """The longest step ≤ 1 that keeps x + step · dx > 0, a little short of it."""
    shrinking = dx < 0
    return jnp.minimum(1.0, 0.995 * jnp.min(jnp.where(shrinking, -x / jnp.where(shrinking, dx, -1.0), jnp.inf)))
