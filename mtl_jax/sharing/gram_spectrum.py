"""Sums Σ_i f(λ_i) and matrices U f(Λ) Uᵀ of a Gram matrix U Λ Uᵀ, with derivatives that are right where λ repeat.

The derivative of Σ f(λ_i) is U f'(Λ) Uᵀ, and that of U f(Λ) Uᵀ is given by divided differences of f (Daleckii & Krein
1965; Lewis & Sendov 2001); neither divides by λ_i − λ_j, as the derivative of `eigh` does. `custom_jvp`, so that
forward mode works.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

JACOBI_LIMIT = 32  # for larger K the K rounds of a sweep cost more than the precision is worth
_MAX_SWEEPS = 15


class Spectrum(NamedTuple):
    """Eigenvalues [K], in descending order, zero where they are below rounding; eigenvectors in columns [K, K]."""

    values: jax.Array
    vectors: jax.Array


@jax.jit
def spectrum(matrix: jax.Array) -> Spectrum:
    """Eigen-decomposition of a positive semi-definite float[K, K].

    Up to K = 32 by Jacobi rotations, which find small eigenvalues of a graded matrix (see `contrast_gram`) to full
    relative precision (Demmel & Veselić 1992), where `eigh` knows them only relative to the largest; above, by `eigh`.
    """
    count = matrix.shape[0]
    matrix = 0.5 * (matrix + matrix.T)
    eps = jnp.finfo(matrix.dtype).eps
    if count <= JACOBI_LIMIT:
        values, vectors = _jacobi(matrix)
        # λ_i is a sum of terms u_j u_k g_jk; what is below their rounding counts as zero.
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
    a = jnp.pad(matrix, (0, size - count))  # for odd K one row of zeros, which never rotates
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

    The last slot stays, all others move by one, so that each pair meets once (the circle method of tournaments).
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


class MatrixFunction(NamedTuple):
    """A function f of eigenvalues λ [K], in descending order, and of a scalar s ≥ 0, both traced.

    value: (λ, s) -> f(λ), [K].
    quotient: (λ, s) -> (f(λ_i) − f(λ_j)) / (λ_i − λ_j), [K, K], in its diagonal and for equal values ∂f/∂λ; finite.
    """

    value: Callable[[jax.Array, jax.Array], jax.Array]
    quotient: Callable[[jax.Array, jax.Array], jax.Array]


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
    gradient = _matrix_function(_slope(function), matrix, jnp.zeros((), matrix.dtype), decomposed)
    return _sum(function, matrix, decomposed), jnp.sum(gradient * tangents[0])


@cache
def _slope(function: SpectralFunction) -> MatrixFunction:
    return MatrixFunction(
        lambda values, _: function.slope(values), lambda values, _: _divided_differences(function, values)
    )


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


def matrix_function(
    function: MatrixFunction, matrix: jax.Array | np.ndarray, s: jax.Array, decomposed: Spectrum | None = None
) -> jax.Array:
    """U f(Λ, s) Uᵀ of a positive semi-definite float[K, K] = U Λ Uᵀ, in the dtype of s.

    Once differentiable in a jax array and s, in either mode; a second derivative raises NotImplementedError. A NumPy
    matrix is decomposed at trace time, in float64, and is a constant of the program; s is then as differentiable as f.
    `decomposed` is the `spectrum` of the matrix, where it is known.
    """
    if isinstance(matrix, np.ndarray):
        values, vectors = _constant_spectrum(matrix, s.dtype)
        return _in_basis(vectors, jnp.diag(function.value(values, s)))
    if decomposed is None:
        decomposed = spectrum(jax.lax.stop_gradient(matrix))
    return _matrix_function(function, matrix, s, decomposed)


def _constant_spectrum(matrix: np.ndarray, dtype: jnp.dtype) -> Spectrum:
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    floor = 8 * len(values) * np.finfo(np.float64).eps * np.max(np.abs(values))
    values = np.where(values > floor, values, 0.0)
    return Spectrum(jnp.asarray(values[::-1], dtype), jnp.asarray(vectors[:, ::-1], dtype))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _matrix_function(function, matrix, s, decomposed: Spectrum) -> jax.Array:
    return _in_basis(decomposed.vectors, jnp.diag(function.value(decomposed.values, s)))


@_matrix_function.defjvp
def _matrix_function_jvp(function, primals, tangents):
    matrix, s, decomposed = primals
    quotients, slopes, vectors = _coefficients(function, matrix, s, decomposed)
    in_eigenvectors = _in_basis(vectors.T, 0.5 * (tangents[0] + tangents[0].T))
    change = _in_basis(vectors, quotients * in_eigenvectors + jnp.diag(slopes * tangents[1]))
    return _matrix_function(function, matrix, s, decomposed), change


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _coefficients(function, matrix, s, decomposed):
    values, vectors = decomposed
    slopes = jax.jvp(lambda s: function.value(values, s), (s,), (jnp.ones_like(s),))[1]
    return function.quotient(values, s), slopes, vectors


@_coefficients.defjvp
def _coefficients_jvp(function, primals, tangents):
    raise NotImplementedError(
        "proximal operators on singular values are differentiable once, their penalties twice, not more"
    )


@jax.custom_jvp
def eigenvalues(matrix: jax.Array, decomposed: Spectrum) -> jax.Array:
    """The λ [K] of a matrix and its `spectrum`, for symmetric functions of them: those are right where λ repeat."""
    return decomposed.values


@eigenvalues.defjvp
def _eigenvalues_jvp(primals, tangents):
    _, decomposed = primals
    return decomposed.values, jnp.diagonal(_in_basis(decomposed.vectors.T, 0.5 * (tangents[0] + tangents[0].T)))
