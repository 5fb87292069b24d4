"""Closed forms through the eigenvalues of the Gram matrix: IMTL-G, Aligned-MTL, ConFIG."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing import spectral as eigen
from mtl_jax.balancing.options import PerTask
from mtl_jax.balancing.weightings.base import (
    Weighting,
    cosines,
    dot,
    normalised_preference,
    safe_sqrt,
    scale_gram,
    stateless,
)

SCALES = ("min", "median", "rmse")


def imtl_g() -> Weighting:
    """The combination, Σ weights = 1, whose projections on all gradients are equal (Liu et al. 2021, IMTL-G).

    Solves G w ∝ (‖g_1‖ … ‖g_K‖). Weights may be negative. Zeros where the only such combination is zero (g_1 = −g_2).
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        similarity, inverse_norms = cosines(gram, present)
        live = (inverse_norms > 0).astype(gram.dtype)
        solution = inverse_norms * dot(eigen.inverse_power(similarity, -1.0), live)
        total = jnp.sum(solution)
        enough = jnp.abs(total) > 100 * jnp.finfo(gram.dtype).eps * jnp.sum(jnp.abs(inverse_norms))
        return jnp.where(enough, solution / jnp.where(enough, total, 1.0), 0.0)

    return stateless(weights)


def aligned_mtl(scale: str = "min", preference: PerTask | None = None) -> Weighting:
    """The gradient matrix with all its singular values made equal (Senushkin et al. 2023, algorithm 1).

    weights = √s V Λ^(−½) Vᵀ p over the eigenvalues that are not 0, p = `preference` [K], normalised to sum 1 over the
    tasks present, by default 1/n. `scale` selects s among these eigenvalues: the least ("min"), the lower median
    ("median") or the mean ("rmse"). Raises ValueError for another name.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    preferred = options.preference_vector(preference)

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        relative = scale_gram(gram)
        values = eigen.eigenvalues(relative)
        live = eigen.significant(values)
        rank = jnp.sum(live.astype(jnp.int32))
        if scale == "rmse":
            chosen = jnp.sum(jnp.where(live, values, 0.0)) / jnp.maximum(rank, 1).astype(values.dtype)
        else:
            # values are ascending, the live ones are the last
            position = values.size - rank if scale == "min" else values.size - rank + (rank - 1) // 2
            chosen = values[jnp.clip(position, 0, values.size - 1)]
        balanced = safe_sqrt(chosen) * dot(
            eigen.inverse_power(relative, -0.5), normalised_preference(gram, present, preferred)
        )
        return jnp.where(present & (rank > 0), balanced, 0.0)

    return stateless(weights)


def config(preference: PerTask | None = None) -> Weighting:
    """The conflict-free direction: equal cosine to all gradients, length Σ_k g_k·direction (Liu et al. 2025, ConFIG).

    direction ∝ U⁺ p, U the gradients made unit vectors (equation 2); the cosines are
    proportional to p = `preference` [K], by default equal. Zeros where there is no such direction (g_1 = −g_2).
    """
    preferred = options.preference_vector(preference)

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        similarity, inverse_norms = cosines(gram, present)
        target = normalised_preference(gram, present, preferred) * (inverse_norms > 0).astype(gram.dtype)
        coefficients = dot(eigen.inverse_power(similarity, -1.0), target)
        projected = dot(similarity, coefficients)  # on the unit gradients
        square = dot(coefficients, projected)
        enough = square > jnp.finfo(gram.dtype).eps * dot(target, target)
        length = jnp.sum(projected * safe_sqrt(jnp.diagonal(gram)))
        return jnp.where(enough, length / jnp.where(enough, square, 1.0), 0.0) * coefficients * inverse_norms

    return stateless(weights)
