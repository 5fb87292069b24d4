"""By which fraction a proximal operator shrinks an eigendirection: f(λ, s) in [0, 1], as `MatrixFunction`s.

The operators are X ← X − X · U f(Λ, s) Uᵀ; all formulas keep their relative precision for small and large s, and are
finite for zero and for repeated λ.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram_spectrum import MatrixFunction


def saturating_fraction(x: jax.Array) -> jax.Array:
    """x/(1 + x) for x ≥ 0, 1 at infinity; in float32 right for x = 1e-12, the derivative for x = 1e12."""
    return -jnp.expm1(-jnp.log1p(x))


def _resolvent(values: jax.Array, t: jax.Array) -> jax.Array:
    """2tμ/(1 + 2tμ): the eigenvalues of I − (I + 2tM)⁻¹."""
    return saturating_fraction(_rates(values, t))


def _resolvent_quotient(values: jax.Array, t: jax.Array) -> jax.Array:
    remaining = 1.0 / (1.0 + _rates(values, t))
    return 2.0 * jnp.minimum(t, _bound(values)) * remaining[:, None] * remaining[None, :]


def _rates(values: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.where(values > 0, 2.0 * t * values, 0.0)  # 0 where μ = 0, for t = ∞ too


RESOLVENT = MatrixFunction(_resolvent, _resolvent_quotient)


def soft_threshold(sizes: jax.Array, threshold: jax.Array) -> jax.Array:
    """min(τ/σ, 1): σ ← max(σ − τ, 0). Where σ = 0 there is only rounding: it is removed too, unless τ = 0."""
    above = sizes > threshold
    return jnp.where(above, threshold / jnp.where(above, sizes, 1.0), jnp.where(threshold > 0, 1.0, 0.0))


def _soft_threshold_quotient(values: jax.Array, threshold: jax.Array) -> jax.Array:
    sigma = _roots(values)
    larger = jnp.maximum(sigma[:, None], sigma[None, :])
    smaller = jnp.minimum(sigma[:, None], sigma[None, :])
    both_above, one_above = smaller > threshold, (larger > threshold) & (smaller <= threshold)
    positive = jnp.where(larger > 0, larger, 1.0)
    # (τ/σ_i − τ/σ_j) / (σ_i² − σ_j²), and (τ/σ_i − 1) / (σ_i² − σ_j²), without a small difference
    for_both = threshold / positive / jnp.where(both_above, smaller, 1.0)
    for_one = (larger - threshold) / jnp.where(one_above, larger - smaller, 1.0) / positive
    quotient = -jnp.where(both_above, for_both, jnp.where(one_above, for_one, 0.0)) / (positive + smaller)
    return jnp.where(threshold > 0, jnp.maximum(quotient, -_bound(values)), 0.0)


SOFT_THRESHOLD = MatrixFunction(
    lambda values, threshold: soft_threshold(_roots(values), threshold), _soft_threshold_quotient
)


def squared_sum_threshold(values: jax.Array, t: jax.Array) -> jax.Array:
    """τ = 2tS where S = Σ_i max(σ_i − τ, 0), σ = √λ in descending order: a scalar, differentiable in λ and t.

    If k of them stay positive, τ = 2t(σ_1 + … + σ_k)/(1 + 2tk); the right k gives the largest of these.
    """
    count = jnp.arange(1, values.shape[0] + 1, dtype=values.dtype)
    candidates = jnp.cumsum(_roots(values)) * saturating_fraction(2.0 * t * count) / count
    last = values.shape[0] - 1 - jnp.argmax(candidates[::-1])  # at t = 0 all are equal, and all σ stay
    return candidates[last]


@cache
def beyond(dim: int) -> MatrixFunction:
    """2t/(1 + 2t) for all but the first `dim`."""

    def value(values: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.where(jnp.arange(values.shape[0]) >= dim, saturating_fraction(2.0 * t), 0.0)

    def quotient(values: jax.Array, t: jax.Array) -> jax.Array:
        inside = jnp.arange(values.shape[0]) < dim
        gap = jnp.abs(values[:, None] - values[None, :])
        rounding = 8 * values.shape[0] * jnp.finfo(values.dtype).eps * jnp.maximum(values[:, None], values[None, :])
        # Where the two are equal the operator jumps; there is no derivative, and 0 is taken.
        distinct = (inside[:, None] != inside[None, :]) & (gap > rounding)
        slopes = jnp.where(distinct, -saturating_fraction(2.0 * t) / jnp.where(distinct, gap, 1.0), 0.0)
        return jnp.maximum(slopes, -_bound(values))

    return MatrixFunction(value, quotient)


def _roots(values: jax.Array) -> jax.Array:
    return jnp.where(values > 0, jnp.sqrt(jnp.where(values > 0, values, 1.0)), 0.0)


def _bound(values: jax.Array) -> float:
    return float(jnp.finfo(values.dtype).max ** 0.75)  # so that products with it stay finite
