"""The positive solution of C v = b · v^(−1/α), the optimality condition of α-fair bargaining."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
_LENGTHS = 0.5 ** np.arange(10)


def fair_solution(matrix: jax.Array, weights: jax.Array, alpha: jax.Array, iterations: int = 40) -> jax.Array:
    """argmin over v > 0 of ½ vᵀCv − Σ b_k v_k^p / p, p = 1 − 1/α (log v_k for p = 0), which is strictly convex.

    Newton steps in the relative changes of v, each with the best of ten lengths, a full step when near. Then steps on
    the logarithms of the equation: there a task with a tiny weight is far from the solution, in the minimum it is not.
    The iterations are not differentiated; the derivative is that of one further step (the implicit function theorem).

    Args:
      matrix: C, positive definite float[K, K] of order 1.
      weights: b > 0, float[K].
      alpha: scalar > 0.

    Returns:
      v, float[K].
    """
    power = 1.0 - 1.0 / alpha
    tiny = jnp.finfo(matrix.dtype).tiny

    def newton(v: jax.Array) -> jax.Array:
        matrix, weights, power, alpha = frozen
        gained = weights * v**power
        system = v[:, None] * matrix * v[None, :] + jnp.diag(jnp.maximum(gained / alpha, tiny))
        # scaled to a unit diagonal: the entries of tasks may differ by many orders of magnitude
        scale = jax.lax.rsqrt(jnp.diagonal(system))
        residual = gained - v * _product(matrix, v)
        return scale * jnp.linalg.solve(scale[:, None] * system * scale[None, :], scale * residual)

    def value(v: jax.Array) -> jax.Array:
        logs = jnp.log(v)
        small = jnp.abs(power) < 1e-6
        utility = jnp.where(small, logs, jnp.expm1(power * logs) / jnp.where(small, 1.0, power))
        return 0.5 * jnp.dot(v, _product(frozen[0], v), precision=_HIGHEST) - jnp.sum(frozen[1] * utility)

    def step(_: int, v: jax.Array) -> jax.Array:
        change = newton(v)
        lengths = jnp.asarray(_LENGTHS, v.dtype)
        candidates = v[None, :] * jnp.maximum(1.0 + lengths[:, None] * change[None, :], 0.05)
        values = jax.vmap(value)(candidates)
        best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        near = jnp.max(jnp.abs(change)) < 0.3
        new = jnp.maximum(candidates[jnp.where(near, 0, best)], tiny)
        return jnp.where(jnp.all(jnp.isfinite(new)), new, v)

    frozen = jax.lax.stop_gradient((matrix, weights, power, alpha))
    power = frozen[2]
    alone = frozen[1] ** (frozen[3] / (1.0 + frozen[3]))  # the solution where C is the identity
    along = jnp.sum(frozen[1] * alone**power) / jnp.dot(alone, _product(frozen[0], alone), precision=_HIGHEST)
    start = alone * along ** (1.0 / (2.0 - power))
    v = jax.lax.fori_loop(0, iterations, step, start)
    v = jax.lax.fori_loop(0, 12, functools.partial(_polish, frozen[0], frozen[1], frozen[3]), v)
    change = _log_newton(matrix, weights, alpha, v)[1]
    return v + v * (change - jax.lax.stop_gradient(change))


def _log_newton(matrix: jax.Array, weights: jax.Array, alpha: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log(Cv) + log(v)/α = log b: the residual [K] and Newton's change of log v. Rows with Cv ≤ 0 do not move."""
    slope = _product(matrix, v)
    inside = slope > 0
    safe = jnp.where(inside, slope, 1.0)
    residual = jnp.where(inside, jnp.log(weights) - jnp.log(safe) - jnp.log(v) / alpha, 0.0)
    system = (
        jnp.where(inside[:, None], matrix * v[None, :] / safe[:, None], 0.0) + jnp.eye(v.size, dtype=v.dtype) / alpha
    )
    return jnp.where(inside, residual, jnp.inf), jnp.linalg.solve(system, residual)


def _polish(matrix: jax.Array, weights: jax.Array, alpha: jax.Array, _: int, v: jax.Array) -> jax.Array:
    """One step of `_log_newton`, taken only if the residual falls."""
    before, change = _log_newton(matrix, weights, alpha, v)
    new = jnp.maximum(v * jnp.exp(change), jnp.finfo(v.dtype).tiny)
    after = _log_newton(matrix, weights, alpha, new)[0]
    falls = jnp.max(jnp.abs(after)) < jnp.max(jnp.abs(before))
    return jnp.where(falls & jnp.all(jnp.isfinite(new)), new, v)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, x, precision=_HIGHEST)
