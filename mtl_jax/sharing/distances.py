"""Penalties that are quadratic in the distances between the tasks' parameters.

Each is tr(M G) for a matrix M of the tasks and the Gram matrix G of the tree, taken in the basis of the tasks' mean and
contrasts (`contrast_gram`), so that parameters that differ by 1e-5 lose no precision in float32.

All take a pytree with leaves [K, ...], seen as one vector Θ_k a task, and return a float32 scalar (float64 if a leaf
is). Sums over pairs are i < j; papers that sum over i ≠ j count each pair twice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.gram import (
    Tree,
    accumulation_dtype,
    centered,
    congruence,
    contrast_basis,
    contrast_gram,
    less_anchor,
    task_count,
)


def l2_to_mean(tree: Tree) -> jax.Array:
    """Σ_k ‖Θ_k − Θ̄‖², Θ̄ the mean over the tasks (Evgeniou & Pontil 2004, with the shared part free)."""
    task_count(tree)
    deviations = centered(tree, "mean", accumulation_dtype(tree))
    return sum(jnp.sum(jnp.square(deviation)) for deviation in jax.tree.leaves(deviations))


def l2_pairwise(tree: Tree, weights: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Σ_{i<j} w_ij ‖Θ_i − Θ_j‖² (Duong et al. 2015); without weights equal to K · `l2_to_mean`.

    Args:
      weights: float[K, K], read above the diagonal; None for 1. Raises ValueError for another shape or a negative
      weight.
    """
    count = task_count(tree)
    if weights is None:
        return count * l2_to_mean(tree)
    upper = jnp.triu(_task_matrix("weights", weights, tree), 1)
    return _laplacian(tree, upper + upper.T)


def laplacian(tree: Tree, adjacency: jax.typing.ArrayLike) -> jax.Array:
    """Σ_{i<j} a_ij ‖Θ_i − Θ_j‖² = tr(L G), L the graph's Laplacian (Evgeniou et al. 2005, section 3.1.3).

    Args:
      adjacency: float[K, K], symmetric, ≥ 0; its diagonal has no effect. Raises ValueError for another shape, and,
        where the values can be seen (NumPy, lists), for a negative or asymmetric one.
    """
    matrix = _task_matrix("adjacency", adjacency, tree)
    if _is_concrete(adjacency) and not np.allclose(adjacency, np.transpose(adjacency)):
        raise ValueError("adjacency must be symmetric: edge (i, j) and edge (j, i) are one")
    return _laplacian(tree, matrix)


def l2_to_anchor(tree: Tree, anchor: Tree) -> jax.Array:
    """Σ_k ‖Θ_k − anchor‖², with the pretrained parameters as anchor L2-SP (Li et al. 2018, without their factor α/2).

    Args:
      anchor: pytree of the same structure, leaves [...] (one for all tasks) or [K, ...]; ValueError where it does not
      fit.
    """
    task_count(tree)
    dtype = accumulation_dtype(tree)
    differences = less_anchor(jax.tree.map(lambda x: jnp.asarray(x, dtype), tree), anchor)
    return sum(jnp.sum(jnp.square(difference)) for difference in jax.tree.leaves(differences))


def kernel(tree: Tree, kernel: jax.typing.ArrayLike | None = None) -> jax.Array:
    """tr(K⁻¹ G): regularised multi-task learning with a task kernel (Evgeniou & Pontil 2004; Evgeniou et al. 2005).

    Args:
      kernel: float[K, K], symmetric positive definite. None for I + 11ᵀ, the kernel of Θ_k = Θ_0 + V_k with the common
        part and the deviations penalised alike: the penalty is then min over Θ_0 of ‖Θ_0‖² + Σ_k ‖Θ_k − Θ_0‖². Raises
        ValueError for another shape, and, where the values can be seen, for a matrix that is not positive definite.
    """
    count = task_count(tree)
    matrix = np.eye(count) + 1.0 if kernel is None else kernel
    if _is_concrete(matrix) and np.shape(matrix) == (count, count):
        asymmetric = not np.allclose(matrix, np.transpose(matrix))
        if asymmetric or np.min(np.linalg.eigvalsh(np.asarray(matrix, np.float64))) <= 0:
            raise ValueError(
                "the task kernel must be symmetric positive definite: a covariance between tasks, none singular"
            )
    products = contrast_gram(tree)
    basis = jnp.asarray(contrast_basis(count), products.dtype)
    return jnp.trace(jnp.linalg.solve(congruence(_task_matrix("kernel", matrix, tree), basis), products))


def _laplacian(tree: Tree, adjacency: jax.Array) -> jax.Array:
    products = contrast_gram(tree, "mean")
    degrees = jnp.sum(adjacency, axis=1) - jnp.diagonal(adjacency)
    off_diagonal = adjacency - jnp.diag(jnp.diagonal(adjacency))
    basis = jnp.asarray(contrast_basis(adjacency.shape[0]), products.dtype)
    return jnp.sum(congruence(jnp.diag(degrees) - off_diagonal, basis) * products)


def _task_matrix(name: str, matrix: jax.typing.ArrayLike, tree: Tree) -> jax.Array:
    count = task_count(tree)
    if np.shape(matrix) != (count, count):
        raise ValueError(f"{name} must have shape [K, K] = {(count, count)}, not {np.shape(matrix)}")
    if name != "kernel" and _is_concrete(matrix) and np.min(matrix) < 0:
        raise ValueError(f"{name} must be ≥ 0: a negative one drives two tasks apart without bound")
    return jnp.asarray(matrix, accumulation_dtype(tree))


def _is_concrete(matrix) -> bool:
    return not isinstance(matrix, jax.Array)
