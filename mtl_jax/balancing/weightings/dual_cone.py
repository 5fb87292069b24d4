"""Projections on the directions that harm no task: DualProj, UPGrad, and PCD, which has a primary task."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.interior_point import nonnegative_minimum
from mtl_jax.balancing.options import Number, PerTask
from mtl_jax.balancing.weightings.base import (
    Weighting,
    dot,
    mask_absent,
    normalised_preference,
    require_task_count,
    safe_divide,
    safe_sqrt,
    stateless,
)


def dualproj(regularisation: Number = 1e-4, preference: PerTask | None = None) -> Weighting:
    """The mean gradient projected on the dual cone, the directions that go against no gradient (Lopez-Paz & Ranzato
    2017, equation 11, with `preference` [K] instead of their last task; by default 1/n).

    weights = argmin vᵀG'v over v ≥ p, G' = G / tr G + `regularisation` · I. Raises ValueError unless that
    is > 0.
    """
    options.check_interval("regularisation", regularisation, 0.0, ends="()")
    preferred = options.preference_vector(preference)

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        return _above(_regularised(gram, regularisation), normalised_preference(gram, present, preferred), present)

    return stateless(weights)


def upgrad(regularisation: Number = 1e-4, preference: PerTask | None = None) -> Weighting:
    """Unconflicting projection of gradients: each projected on the dual cone, then the mean (Quinton & Rey 2024).

    weights = Σ_k argmin vᵀG'v over v ≥ p_k e_k (their proposition 1), G' and p as in `dualproj`.
    """
    options.check_interval("regularisation", regularisation, 0.0, ends="()")
    preferred = options.preference_vector(preference)

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        matrix = _regularised(gram, regularisation)
        alone = jnp.diag(normalised_preference(gram, present, preferred))
        return jnp.sum(jax.vmap(lambda lower: _above(matrix, lower, present))(alone), axis=0)

    return stateless(weights)


class PcdState(NamedTuple):
    """squares float[K]: moving averages of the squared norms, from 0; seen int32[K]: updates in which each task was
    present.
    """

    squares: jax.Array
    seen: jax.Array


def pcd(tau: Number = 0.02, beta: Number = 0.999, primary: int = 0, eps: Number = 1e-8) -> Weighting:
    """Priority-constrained descent: the direction nearest to the primary task's gradient that gives each other task at
    least the fraction τ of what its own gradient would give it (Varam & AlHajri 2026, algorithm 1).

    d = argmin ½‖d − g̃_1‖² with g̃_k·d ≥ τ‖g̃_k‖² for all others, g̃_k = g_k / √(v̂_k + eps), v̂_k the bias-corrected moving
    average of ‖g_k‖² (decay β); d is scaled to the norm of g_1. If the conditions contradict each other they are
    dropped. If the primary task is absent or its gradient is zero, the weights are 0.

    Raises ValueError unless 0 ≤ τ ≤ 1, 0 ≤ β < 1, eps ≥ 0 and 0 ≤ primary < K.
    """
    options.check_interval("tau", tau, 0.0, 1.0)
    options.check_interval("beta", beta, 0.0, 1.0, "[)")
    options.check_interval("eps", eps, 0.0)
    options.check_integer("primary", primary, 0)

    def init(count: int | None) -> PcdState:
        tasks = require_task_count("pcd", count)
        return PcdState(jnp.zeros(tasks), jnp.zeros(tasks, jnp.int32))

    def update(gram: jax.Array, state: PcdState, *, key: jax.Array, present: jax.Array):
        if primary >= present.size:
            raise ValueError(f"primary must be one of the {present.size} tasks, 0 … {present.size - 1}, not {primary}")
        gram = mask_absent(gram, present)
        dtype = gram.dtype
        decay = options.as_scalar(beta, dtype)
        squares = jnp.diagonal(gram)
        before = state.squares.astype(dtype)
        average = jnp.where(present, decay * before + (1.0 - decay) * squares, before)
        seen = state.seen + present.astype(jnp.int32)
        unbiased = average / jnp.where(seen > 0, 1.0 - decay ** seen.astype(dtype), 1.0)
        scale = jnp.where(
            present, safe_divide(jnp.ones_like(squares), safe_sqrt(unbiased + options.as_scalar(eps, dtype))), 0.0
        )
        is_primary = jnp.arange(present.size) == primary
        weights = _primary_first(gram, scale, is_primary, present, options.as_scalar(tau, dtype))
        average = jax.lax.stop_gradient(average).astype(state.squares.dtype)
        return weights, PcdState(average, seen)

    return Weighting(init, update)


def _primary_first(
    gram: jax.Array, scale: jax.Array, is_primary: jax.Array, present: jax.Array, tau: jax.Array
) -> jax.Array:
    """Weights of PCD: multipliers of the conditions of the secondary tasks, then the norm of the primary gradient."""
    dtype = gram.dtype
    relative = gram * scale[:, None] * scale[None, :]
    largest = jax.lax.stop_gradient(jnp.max(jnp.diagonal(relative)))
    relative = safe_divide(relative, largest)
    first = is_primary.astype(dtype)
    squares = jnp.diagonal(relative)
    secondary = present & ~is_primary & (squares > 0)
    missing = tau * squares - dot(relative, first)
    multipliers, violation = nonnegative_minimum(relative, -jnp.where(secondary, missing, 0.0), secondary)
    tolerance = 30 * jnp.sqrt(jnp.finfo(dtype).eps)
    combined = first + jnp.where(violation < tolerance, 1.0, 0.0) * multipliers
    square = dot(combined, dot(relative, combined))
    magnitude = dot(jnp.abs(combined), safe_sqrt(squares)) ** 2
    exists = square > 10 * jnp.finfo(dtype).eps * magnitude
    length = safe_sqrt(safe_divide(dot(first, dot(gram, first)), jnp.where(exists, square * largest, 0.0)))
    return length * combined * scale


def _regularised(gram: jax.Array, regularisation: Number) -> jax.Array:
    """G / tr G + regularisation · I."""
    ridge = options.as_scalar(regularisation, gram.dtype) * jnp.eye(gram.shape[0], dtype=gram.dtype)
    return safe_divide(gram, jnp.trace(gram)) + ridge


def _above(matrix: jax.Array, lower: jax.Array, present: jax.Array) -> jax.Array:
    """argmin vᵀMv over v ≥ lower."""
    return lower + nonnegative_minimum(matrix, dot(matrix, lower), present)[0]
