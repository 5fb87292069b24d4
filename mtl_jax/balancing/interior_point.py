"""Small convex programmes by primal-dual interior-point methods of fixed length: inside `jit`, `vmap`-able.

The iterations are not differentiated. Each solver ends with the derivative of one Newton step at the solution (the
implicit function theorem), finite also where the programme is degenerate; so both modes of differentiation work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram import Tree

Derivatives: TypeAlias = Callable[[Tree, jax.Array, jax.typing.ArrayLike], tuple[jax.Array, jax.Array]]


def simplex_minimum(
    derivatives: Derivatives,
    data: Tree,
    normal: jax.Array,
    present: jax.Array,
    iterations: int = 60,
    raised: Callable[[Tree, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """argmin F(w) over w ≥ 0, Σ a_k w_k = 1, w_k = 0 where not present: the probability simplex for a = 1.

    Args:
      derivatives: (data, w [K], floor) -> (gradient [K], positive semi-definite Hessian [K, K]), of order 1. Any
        denominator of F has to be ≥ floor: 0 during the iterations, small for the derivative after them.
      data: pytree of all arrays that F depends on; derivatives flow through it.
      normal: a ≥ 0, float[K], with maximum 1; derivatives flow through it too.
      present: bool[K].
      iterations: Newton steps, each a K×K solve. To rounding a quadratic needs about 15, a norm about 30, and up to 100
        if the gradients are linearly dependent.
      raised: (data, w [K]) -> w after each step, for variables with a lower bound that follows from the other ones.

    Returns:
      float[K]; zeros where no task is present. Where the minimum is not unique, one inside the set of minima.
    """
    dtype = normal.dtype
    on = present.astype(dtype)
    count = jnp.maximum(jnp.sum(on), 1.0)
    both = on[:, None] * on[None, :]
    tiny = jnp.finfo(dtype).eps ** 2

    def newton(problem: Tree, w: jax.Array, z: jax.Array, multiplier: jax.Array, centring: jax.Array, ridge=0.0):
        data, normal = problem
        gradient, hessian = derivatives(data, w * on, ridge)
        target = _target(w, z, on, count, centring)
        barrier = jnp.where(present, z / w, 1.0)  # an absent task is decoupled and does not move
        constraint = normal * on
        # aaᵀ does not change the solution, where the constraint holds; without it a homogeneous F is singular
        system = hessian * both + constraint[:, None] * constraint[None, :] + jnp.diag(barrier + ridge)
        residual = jnp.where(present, gradient + multiplier * normal - target / w, 0.0)
        dw, change = _constrained_step(system, residual, constraint, w)
        dw = dw * on
        return dw, (target / w - z - barrier * dw) * on, change

    def step(_, carry):
        w, z, multiplier, centring = carry
        dw, dz, change = newton(frozen, w, z, multiplier, centring)
        length = jnp.minimum(_to_boundary(w, dw), _to_boundary(z, dz))
        new_w = jnp.maximum(w + length * dw, tiny)
        if raised is not None:
            new_w = jnp.where(present, raised(frozen[0], new_w), new_w)
        new = new_w, jnp.maximum(z + length * dz, tiny), multiplier + length * change, _centring(length)
        return _where_finite(new, carry)

    frozen = jax.lax.stop_gradient((data, normal))
    sides = frozen[1] * on
    equal = 1.0 / jnp.maximum(jnp.sum(sides), tiny)
    start = jnp.where(present, equal, 1.0), jnp.ones_like(on), jnp.zeros((), dtype), _centring(jnp.ones((), dtype))
    w, z, multiplier, centring = jax.lax.fori_loop(0, iterations, step, start)
    change = newton((data, normal), w, z, multiplier, centring, _ridge(dtype))[0]
    w = w * on
    return w / jnp.maximum(jnp.sum(sides * w), tiny) + _only_derivative(change)


def _constrained_step(
    system: jax.Array, residual: jax.Array, constraint: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Newton's change of w [K] and of the multiplier of Σ a_k w_k = 1, by elimination of w."""
    solved = jnp.linalg.solve(system, jnp.stack([-residual, constraint], axis=1))
    violation = jnp.sum(constraint * w) - 1.0 + jnp.sum(constraint * solved[:, 0])
    change = violation / jnp.maximum(jnp.sum(constraint * solved[:, 1]), jnp.finfo(w.dtype).eps ** 2)
    return solved[:, 0] - change * solved[:, 1], change


def nonnegative_minimum(
    hessian: jax.Array, slope: jax.Array, present: jax.Array, iterations: int = 40
) -> tuple[jax.Array, jax.Array]:
    """argmin ½ xᵀHx + bᵀx over x ≥ 0, x_k = 0 where not present.

    Args:
      hessian: H, positive semi-definite float[K, K]. It is scaled to a unit diagonal, and b to a largest entry of 1.
      slope: b, float[K].
      present: bool[K].
      iterations: Newton steps, each a K×K solve; a well-conditioned problem needs about 20 to rounding.

    Returns:
      x float[K]; and the largest violation, a scalar, of the optimality condition Hx + b ≥ 0 in the scaled problem: far
      from 0 if the problem is unbounded.
    """
    dtype = hessian.dtype
    on = present.astype(dtype)
    count = jnp.maximum(jnp.sum(on), 1.0)
    both = on[:, None] * on[None, :]
    tiny = jnp.finfo(dtype).eps ** 2
    diagonal = jax.lax.stop_gradient(jnp.diagonal(hessian))
    unit = jax.lax.rsqrt(jnp.where(present & (diagonal > 0), diagonal, 1.0))
    hessian, slope = hessian * unit[:, None] * unit[None, :], slope * unit * on
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(slope)))
    largest = jnp.where(largest > 0, largest, 1.0)
    slope = slope / largest

    def newton(problem: Tree, x: jax.Array, z: jax.Array, ridge=0.0):
        hessian, slope = problem
        target = _target(x, z, on, count)
        barrier = jnp.where(present, z / x, 1.0)
        residual = jnp.where(present, _product(hessian, x * on) + slope - target / x, 0.0)
        dx = jnp.linalg.solve(hessian * both + jnp.diag(barrier + ridge), -residual) * on
        return dx, (target / x - z - barrier * dx) * on

    def step(_, carry):
        x, z = carry
        dx, dz = newton(frozen, x, z)
        length = jnp.minimum(_to_boundary(x, dx), _to_boundary(z, dz))
        new = jnp.maximum(x + length * dx, tiny), jnp.maximum(z + length * dz, tiny)
        return _where_finite(new, carry)

    frozen = jax.lax.stop_gradient((hessian, slope))
    x, z = jax.lax.fori_loop(0, iterations, step, (jnp.ones_like(on), jnp.ones_like(on)))
    change = newton((hessian, slope), x, z, _ridge(dtype))[0]
    x = x * on
    violation = jnp.max(jnp.where(present, -(_product(frozen[0], x) + frozen[1]), 0.0), initial=0.0)
    x = x + _only_derivative(change)
    is_interior = jnp.any(slope < 0)  # otherwise 0 is the solution
    return jnp.where(is_interior, x * unit * largest, 0.0), jnp.where(is_interior, violation, 0.0)


def project_on_simplex(point: jax.Array, present: jax.Array, mass: jax.Array) -> jax.Array:
    """The nearest w to `point` [K] with w ≥ 0, Σ w = mass over the tasks present; 0 for others (Duchi et al. 2008)."""
    on = present.astype(point.dtype)
    descending = -jnp.sort(jnp.where(present, -point, jnp.inf))
    ranked = jnp.isfinite(descending)
    excess = jnp.cumsum(jnp.where(ranked, descending, 0.0)) - mass
    rank = jnp.arange(1, point.size + 1).astype(point.dtype)
    inside = ranked & (descending * rank > excess)
    size = jnp.maximum(jnp.sum(inside.astype(jnp.int32)), 1)
    threshold = excess[size - 1] / size.astype(point.dtype)
    return jnp.maximum(jnp.where(present, point, 0.0) - threshold, 0.0) * on


def _target(
    x: jax.Array, z: jax.Array, on: jax.Array, count: jax.Array, centring: jax.typing.ArrayLike = 0.2
) -> jax.Array:
    """The next target for the products x·z: `centring` times their mean, but not below rounding."""
    return jnp.maximum(centring * jnp.sum(x * z * on) / count, jnp.finfo(x.dtype).eps ** 1.5)


def _centring(length: jax.Array) -> jax.Array:
    """After a step that the boundary shortened, the next one only equalises the products x·z: otherwise it can
    stall."""
    return jnp.where(length < 0.6, 1.0, 0.2).astype(length.dtype)


def _ridge(dtype: jnp.dtype) -> float:
    """A bound for the derivative where the solution is not unique; elsewhere small compared with the Hessian."""
    return float(jnp.finfo(dtype).eps ** 0.5)


def _to_boundary(x: jax.Array, dx: jax.Array) -> jax.Array:
    """0.995 times the longest step that keeps x + step · dx > 0, at most 1."""
    shrinking = dx < 0
    return jnp.minimum(1.0, 0.995 * jnp.min(jnp.where(shrinking, -x / jnp.where(shrinking, dx, -1.0), jnp.inf)))


def _where_finite(new: Tree, old: Tree) -> Tree:
    """The new values if all are finite, otherwise the old ones."""
    good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in new]))
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def _only_derivative(x: jax.Array) -> jax.Array:
    """Zero, with the derivative of x."""
    finite = jnp.where(jnp.isfinite(x), x, 0.0)
    return finite - jax.lax.stop_gradient(finite)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)
