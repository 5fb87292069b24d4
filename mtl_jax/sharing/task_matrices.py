"""The matrices M of the quadratic penalties tr(M G), G the Gram matrix of the tasks.

All are given in the basis of the tasks' mean and contrasts (QᵀMQ, Q = `contrast_basis(K)`), where differences between
tasks are separate from what they share: float64 NumPy where the values are known (NumPy, lists), so that they are
constants of a compiled program, else a jax array of the given dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.gram import congruence, contrast_basis

Matrix = np.ndarray | jax.Array


def pairwise_matrix(weights: jax.typing.ArrayLike, count: int, dtype: jax.typing.DTypeLike) -> Matrix:
    """M of `l2_pairwise`: the Laplacian of the graph whose weights stand above the diagonal; row and column 0 are 0."""
    matrix = _checked("weights", weights, count, dtype)
    upper = matrix * np.triu(np.ones((count, count), matrix.dtype), 1)
    return _graph_laplacian(upper + upper.T)


def laplacian_matrix(adjacency: jax.typing.ArrayLike, count: int, dtype: jax.typing.DTypeLike) -> Matrix:
    """M of `laplacian`: the graph's Laplacian; row and column 0 are 0. Raises ValueError as `laplacian` says."""
    matrix = _checked("adjacency", adjacency, count, dtype)
    if isinstance(matrix, np.ndarray) and not np.allclose(matrix, matrix.T):
        raise ValueError("adjacency must be symmetric: edge (i, j) and edge (j, i) are one")
    return _graph_laplacian(matrix)


def kernel_matrix(kernel: jax.typing.ArrayLike | None, count: int, dtype: jax.typing.DTypeLike) -> Matrix:
    """M of `kernel`: the inverse of the kernel, None for I + 11ᵀ. Raises ValueError as `kernel` says."""
    matrix = _checked("kernel", np.eye(count) + 1.0 if kernel is None else kernel, count, dtype)
    if isinstance(matrix, np.ndarray):
        if not np.allclose(matrix, matrix.T) or np.min(np.linalg.eigvalsh(matrix)) <= 0:
            raise ValueError(
                "the task kernel must be symmetric positive definite: a covariance between tasks that is not singular"
            )
        return np.linalg.inv(_in_basis(matrix, contrast_basis(count)))
    return jnp.linalg.inv(_in_basis(matrix, contrast_basis(count)))


def _checked(name: str, matrix: jax.typing.ArrayLike, count: int, dtype: jax.typing.DTypeLike) -> Matrix:
    if np.shape(matrix) != (count, count):
        raise ValueError(f"{name} must have shape [K, K] = {(count, count)}, not {np.shape(matrix)}")
    if isinstance(matrix, jax.Array):
        return matrix.astype(dtype)
    values = np.asarray(matrix, np.float64)
    if name != "kernel" and np.min(values) < 0:
        raise ValueError(f"{name} must be ≥ 0: a negative one drives two tasks apart without bound")
    return values


def _graph_laplacian(adjacency: Matrix) -> Matrix:
    count = adjacency.shape[0]
    edges = adjacency * (1 - np.eye(count, dtype=adjacency.dtype))
    xp = np if isinstance(adjacency, np.ndarray) else jnp
    basis = contrast_basis(count)
    basis[:, 0] = 0.0  # a Laplacian sends the tasks' mean to zero: exactly, whatever the rounding
    return _in_basis(xp.diag(xp.sum(edges, axis=1)) - edges, basis)


def _in_basis(matrix: Matrix, basis: np.ndarray) -> Matrix:
    if isinstance(matrix, np.ndarray):
        return basis.T @ matrix @ basis
    return congruence(matrix, jnp.asarray(basis, matrix.dtype))
