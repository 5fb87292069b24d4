"""Weights of the tasks' gradients as functions of their Gram matrix: K×K in, K out, inside the compiled step.

Each method is a function that returns a `Weighting`; `aggregation` makes optax transformations of them. No method needs
the gradients themselves. All are `vmap`-able, and finite for zero gradients and rank deficiency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing.simplex import simplex_minimum

State = Any


class Weighting(NamedTuple):
    """init(K) -> state; update(gram float[K, K], state, *, key, present bool[K]) -> (weights float[K], state).

    The combined gradient is Σ_k weights_k g_k. `key` is new at each update. Absent tasks get weight 0 and do not count:
    the result is that of the method on the tasks present.
    """

    init: Callable[[int], State]
    update: Callable[..., tuple[jax.Array, State]]


def mean() -> Weighting:
    """1/n for each of the n tasks present."""
    return _stateless(lambda gram, key, present: _preference(gram, present))


def sum() -> Weighting:
    """1 for each task present."""
    return _stateless(lambda gram, key, present: present.astype(gram.dtype))


def mgda() -> Weighting:
    """The point of least norm in the convex hull of the gradients (Désidéri 2012; Sener & Koltun 2018).

    Exact for two tasks; for more a quadratic programme, solved to rounding in a fixed number of Newton steps.
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        if gram.shape[0] == 2:
            return _least_norm_of_two(gram, present)
        gram = _scaled(gram)
        return simplex_minimum(lambda w: (_dot(gram, w), gram), present, gram.dtype)

    return _stateless(weights)


def pcgrad() -> Weighting:
    """Each gradient loses its components against conflicting ones, in random order (Yu et al. 2020, algorithm 1).

    The projected gradients are summed, as in the paper. The order is drawn anew for each task and update.
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        count = gram.shape[0]
        squares = jnp.diagonal(gram)

        def project(task: jax.Array, task_key: jax.Array) -> jax.Array:
            order = jax.random.permutation(task_key, count)

            def against(step, coefficients):
                other = order[step]
                product = _dot(gram[other], coefficients)
                conflict = (product < 0) & (other != task) & present[other] & (squares[other] > 0)
                removed = jnp.where(conflict, product / jnp.where(conflict, squares[other], 1.0), 0.0)
                return coefficients.at[other].add(-removed)

            alone = jnp.zeros(count, gram.dtype).at[task].set(1.0)
            return jax.lax.fori_loop(0, count, against, alone) * present[task].astype(gram.dtype)

        return jnp.sum(jax.vmap(project)(jnp.arange(count), jax.random.split(key, count)), axis=0)

    return _stateless(weights)


def imtl_g() -> Weighting:
    """The combination, Σ weights = 1, whose projections on all gradients are equal (Liu et al. 2021, IMTL-G).

    Solves G w ∝ (‖g_1‖ … ‖g_K‖). Weights may be negative. Zeros where the only such combination is zero (g_1 = −g_2).
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        squares = jnp.diagonal(gram)
        live = present & (squares > 0)
        inverse_norms = jnp.where(live, jax.lax.rsqrt(jnp.where(live, squares, 1.0)), 0.0)
        cosines = gram * inverse_norms[:, None] * inverse_norms[None, :]
        values, vectors = jnp.linalg.eigh(cosines)
        inverse = _live_power(values, -1.0)
        solution = inverse_norms * _dot(vectors, inverse * _dot(vectors.T, live.astype(gram.dtype)))
        total = jnp.sum(solution)
        enough = jnp.abs(total) > 100 * jnp.finfo(gram.dtype).eps * jnp.sum(jnp.abs(inverse_norms))
        return jnp.where(enough, solution / jnp.where(enough, total, 1.0), 0.0)

    return _stateless(weights)


def aligned_mtl() -> Weighting:
    """The gradient matrix with all its singular values made equal to the least (Senushkin et al. 2023).

    weights = √λ_min V Λ^(−½) Vᵀ p over the eigenvalues that are not 0, p = 1/n for the n tasks present.
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(_scaled(gram))
        inverse_root = _live_power(values, -0.5)
        least = jnp.min(jnp.where(inverse_root > 0, values, jnp.inf))
        scale = jnp.where(jnp.isfinite(least), jnp.sqrt(jnp.where(jnp.isfinite(least), least, 1.0)), 0.0)
        balanced = scale * _dot(vectors, inverse_root * _dot(vectors.T, _preference(gram, present)))
        return jnp.where(present, balanced, 0.0)

    return _stateless(weights)


def cagrad(c: float = 0.4) -> Weighting:
    """Conflict-averse gradient: the best worst improvement within c‖g_0‖ of the mean g_0 (Liu et al. 2021).

    weights = 1/n + c (‖g_0‖ / ‖g_w‖) w, w = argmin over the simplex of g_w·g_0 + c ‖g_0‖ ‖g_w‖. Not divided by 1 + c²,
    as some code does. c = 0 is the mean. Raises ValueError unless 0 ≤ c < 1.
    """
    if not 0 <= c < 1:
        raise ValueError(f"c must lie in [0, 1), not {c}: beyond it the step may go against the mean gradient")

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        share = _preference(gram, present)
        if c == 0:
            return share
        gram = _scaled(gram)
        with_mean = _dot(gram, share)
        radius = c * _safe_root(_dot(share, with_mean))
        smooth = jnp.finfo(gram.dtype).eps ** 2  # the norm has no derivative at 0

        def derivatives(w: jax.Array) -> tuple[jax.Array, jax.Array]:
            product = _dot(gram, w)
            norm = jnp.sqrt(jnp.maximum(_dot(w, product), 0.0) + smooth)
            unit = product / norm
            return with_mean + radius * unit, radius * (gram / norm - unit[:, None] * unit[None, :] / norm)

        w = simplex_minimum(derivatives, present, gram.dtype)
        norm = _safe_root(_dot(w, _dot(gram, w)))
        return share + jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1.0), 0.0) * w

    return _stateless(weights)


def _stateless(weights: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Weighting:
    def update(gram: jax.Array, state: tuple, *, key: jax.Array, present: jax.Array) -> tuple[jax.Array, tuple]:
        seen = present[:, None] & present[None, :]
        return weights(jnp.where(seen, gram, 0.0), key, present), state

    return Weighting(lambda count: (), update)


def _least_norm_of_two(gram: jax.Array, present: jax.Array) -> jax.Array:
    """min over t in [0, 1] of ‖t g_0 + (1 − t) g_1‖: t = (g_1 − g_0)·g_1 / ‖g_0 − g_1‖²."""
    distance = gram[0, 0] + gram[1, 1] - 2.0 * gram[0, 1]
    apart = distance > 0
    first = jnp.where(apart, (gram[1, 1] - gram[0, 1]) / jnp.where(apart, distance, 1.0), 0.5)
    first = jnp.clip(first, 0.0, 1.0)
    both = present[0] & present[1]
    return jnp.where(both, jnp.stack([first, 1.0 - first]), present.astype(gram.dtype))


def _preference(gram: jax.Array, present: jax.Array) -> jax.Array:
    on = present.astype(gram.dtype)
    return on / jnp.maximum(jnp.sum(on), 1.0)


def _scaled(gram: jax.Array) -> jax.Array:
    """The Gram matrix with its largest diagonal entry 1; zeros stay."""
    largest = jnp.max(jnp.diagonal(gram))
    return jnp.where(largest > 0, gram / jnp.where(largest > 0, largest, 1.0), 0.0)


def _live_power(values: jax.Array, power: float) -> jax.Array:
    """values^power, and 0 for eigenvalues below the rounding of the largest."""
    live = values > 4 * values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(values)
    return jnp.where(live, jnp.where(live, values, 1.0) ** power, 0.0)


def _safe_root(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
