"""Sums Σ_i f(λ_i) over the eigenvalues of a Gram matrix, with derivatives that are right where eigenvalues repeat.

The derivative of Σ f(λ_i) is U f'(Λ) Uᵀ, and that of U f'(Λ) Uᵀ is given by divided differences of f' (Daleckii & Krein
1965; Lewis & Sendov 2001); neither divides by λ_i − λ_j, as the derivative of `eigh` does. `custom_jvp`, so that
forward mode works.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

JACOBI_LIMIT = 32  # beyond it Jacobi's K rounds a sweep cost more than the precision is worth
_MAX_SWEEPS = 15


class Spectrum(NamedTuple):
    """Eigenvalues [K], in descending order, zero where they are below rounding; eigenvectors in columns [K, K]."""

    values: jax.Array
    vectors: jax.Array


@jax.jit
def spectrum(matrix: jax.Array) -> Spectrum:
    """Eigen-decomposition of a positive semi-definite float[K, K].

    Up to K = 32 by Jacobi rotations, which find small eigenvalues of a graded matrix (see `contrast_gram`) to full
    relative precision (Demmel & Veselić 1992), where `eigh` knows them only relative to the largest; beyond, by `eigh`.
    """
    count = matrix.shape[0]
    matrix = 0.5 * (matrix + matrix.T)
    eps = jnp.finfo(matrix.dtype).eps
    if count <= JACOBI_LIMIT:
        values, vectors = _jacobi(matrix)
        # λ_i is a sum of terms u_j u_k g_jk; what is left below their rounding is a zero.
        sizes = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0.0))
        floor = 8 * count * eps * jnp.matmul(sizes, jnp.abs(vectors), precision=jax.lax.Precision.HIGHEST) ** 2
    else:
        values, vectors = jnp.linalg.eigh(matrix)
        floor = jnp.full_like(values, 8 * count * eps) * jnp.max(jnp.abs(values))
    values = jnp.where(values > floor, values, 0.0)
    order = jnp.argsort(-values)
    return Spectrum(values[order], vectors[:, order])


def _jacobi(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [K] (unsorted) and eigenvectors [K, K] by sweeps of K/2 disjoint rotations at a time."""
    count = matrix.shape[0]
    if count == 1:
        return jnp.diagonal(matrix), jnp.ones_like(matrix)
    half = (count + 1) // 2
    size = 2 * half
    a = jnp.pad(matrix, (0, size - count))  # the row of an odd one out is zero and never rotates
    shuffle = jnp.asarray(_round_robin(half), matrix.dtype)
    eps = jnp.finfo(matrix.dtype).eps
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def rotate(_, carry):
        a, u = carry
        diagonal = jnp.diagonal(a)
        p, q, off = diagonal[:half], diagonal[half:], jnp.diagonal(a[:half, half:])
        active = jnp.abs(off) > 0.5 * eps * jnp.sqrt(jnp.abs(p)) * jnp.sqrt(jnp.abs(q))
        tau = (q - p) / (2.0 * jnp.where(active, off, 1.0))
        tangent = jnp.where(tau >= 0, 1.0, -1.0) / (jnp.abs(tau) + jnp.sqrt(1.0 + tau * tau))
        tangent = jnp.where(active, tangent, 0.0)
        cosine = jax.lax.rsqrt(1.0 + tangent * tangent)
        sine = tangent * cosine
        rotation = jnp.block([[jnp.diag(cosine), jnp.diag(sine)], [jnp.diag(-sine), jnp.diag(cosine)]])
        step = dot(rotation, shuffle)
        return dot(dot(step.T, a), step), dot(u, step)

    def unfinished(carry):
        sweep, a, _ = carry
        scale = jnp.sqrt(jnp.abs(jnp.diagonal(a)))
        off = jnp.abs(a - jnp.diag(jnp.diagonal(a)))
        return (sweep < _MAX_SWEEPS) & jnp.any(off > eps * scale[:, None] * scale[None, :])

    def sweep(carry):
        number, a, u = carry
        a, u = jax.lax.fori_loop(0, size - 1, rotate, (a, u))
        return number + 1, a, u

    _, a, u = jax.lax.while_loop(unfinished, sweep, (0, a, jnp.eye(size, dtype=a.dtype)))
    return jnp.diagonal(a)[:count], u[:count, :count]


def _round_robin(half: int) -> np.ndarray:
    """Permutation matrix [2·half, 2·half] between rounds; i meets half + i, and size − 1 rounds restore the order.

    The last slot stays, all others move on by one, so that each two meet once (the circle method of tournaments).
    """
    circle = [*range(half), *range(2 * half - 2, half - 1, -1)]
    matrix = np.zeros((2 * half, 2 * half))
    matrix[2 * half - 1, 2 * half - 1] = 1.0
    for here, there in zip(circle, [*circle[1:], circle[0]], strict=True):
        matrix[here, there] = 1.0
    return matrix


class SpectralFunction(NamedTuple):
    """Functions of eigenvalues [K] in descending order: value, slope f', curvature f''; all finite at 0."""

    value: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]
    curvature: Callable[[jax.Array], jax.Array]


def spectral_sum(function: SpectralFunction, matrix: jax.Array) -> jax.Array:
    """Σ_i f(λ_i) of a positive semi-definite float[K, K]: a scalar, twice differentiable in either mode."""
    # Decomposed once: the value and both derivatives below are written in the same λ and U.
    return _sum(function, matrix, spectrum(jax.lax.stop_gradient(matrix)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum(function: SpectralFunction, matrix: jax.Array, decomposed: Spectrum) -> jax.Array:
    return jnp.sum(function.value(decomposed.values))


@_sum.defjvp
def _sum_jvp(function, primals, tangents):
    matrix, decomposed = primals
    return _sum(function, matrix, decomposed), jnp.sum(_gradient(function, matrix, decomposed) * tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(function: SpectralFunction, matrix: jax.Array, decomposed: Spectrum) -> jax.Array:
    return _in_basis(decomposed.vectors, jnp.diag(function.slope(decomposed.values)))


@_gradient.defjvp
def _gradient_jvp(function, primals, tangents):
    matrix, decomposed = primals
    tangent = 0.5 * (tangents[0] + tangents[0].T)
    in_eigenvectors = _in_basis(decomposed.vectors.T, tangent)
    change = _in_basis(decomposed.vectors, _divided_differences(function, decomposed.values) * in_eigenvectors)
    return _gradient(function, matrix, decomposed), change


def _in_basis(vectors: jax.Array, matrix: jax.Array) -> jax.Array:
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(jnp.matmul(vectors, matrix, precision=highest), vectors.T, precision=highest)


def _divided_differences(function: SpectralFunction, values: jax.Array) -> jax.Array:
    """(f'(λ_i) − f'(λ_j)) / (λ_i − λ_j), and f'' at the middle where the two are too close to divide: float[K, K]."""
    gap = values[:, None] - values[None, :]
    middle = 0.5 * (values[:, None] + values[None, :])
    close = jnp.abs(gap) <= jnp.finfo(values.dtype).eps ** (1 / 3) * middle
    slopes = function.slope(values)
    quotient = (slopes[:, None] - slopes[None, :]) / jnp.where(close, 1.0, gap)
    bound = jnp.finfo(values.dtype).max ** 0.75  # so that products with it stay finite
    return jnp.clip(jnp.where(close, function.curvature(middle), quotient), -bound, bound)
