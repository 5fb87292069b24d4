"""Functions of the eigenvalues of a Gram matrix; finite, with finite derivatives, where eigenvalues repeat or vanish.

The derivative of `eigh` divides by the differences of eigenvalues. Here the derivatives are written out instead.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def significant(values: jax.Array) -> jax.Array:
    """bool[K]: eigenvalues above the rounding of the largest."""
    return values > 4 * values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(values)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def inverse_power(matrix: jax.Array, power: float) -> jax.Array:
    """matrix^power over its live eigenvalues, 0 over the others; power −1 (the pseudo-inverse) or −½. float[K, K]."""
    vectors, values = _decomposition(matrix, power)
    return _matmul(vectors * values[None, :], vectors.T)


@inverse_power.defjvp
def _inverse_power_jvp(power, primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    vectors, f = _decomposition(matrix, power)
    # Daleckii and Krein (1965): divided differences of f, here without a difference that can cancel.
    product = f[:, None] * f[None, :]
    if power == -1.0:
        divided = -product
        with_zero = f**2  # of a live eigenvalue λ and a vanished one: f(λ)/λ
    else:
        total = f[:, None] + f[None, :]
        divided = -(product**2) / jnp.where(total > 0, total, 1.0)
        with_zero = f**3
    dead = (f == 0).astype(f.dtype)
    divided = divided + with_zero[:, None] * dead[None, :] + dead[:, None] * with_zero[None, :]
    inner = _matmul(_matmul(vectors.T, tangent), vectors)
    change = _matmul(_matmul(vectors, divided * inner), vectors.T)
    return _matmul(vectors * f[None, :], vectors.T), change


def eigenvalues(matrix: jax.Array) -> jax.Array:
    """Ascending eigenvalues float[K] of a symmetric matrix. Where some repeat, one of several derivatives is taken."""
    _, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    return jnp.sum(vectors * _matmul(matrix, vectors), axis=0)


def _decomposition(matrix: jax.Array, power: float) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    used = significant(values)
    return vectors, jnp.where(used, jnp.where(used, values, 1.0) ** power, 0.0)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
