"""Penalties that are quadratic in the distances between the tasks' parameters.

Each is tr(M G) for a matrix M of the tasks and the Gram matrix G of the tree, taken in the basis of the tasks' mean and
contrasts (`contrast_gram`), so that parameters that differ by 1e-5 lose no precision in float32.

All take a pytree with leaves [K, ...], seen as one vector Θ_k a task, and return a float32 scalar (float64 if a leaf
is). Sums over pairs are i < j; papers that sum over i ≠ j count each pair twice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram import (
    Tree,
    accumulation_dtype,
    cast,
    contrast_gram,
    squared_deviations,
    squared_norm,
    subtract_anchor,
    task_count,
    total,
)
from mtl_jax.sharing.low_rank_stack import leaves_of
from mtl_jax.sharing.task_matrices import Matrix, kernel_matrix, laplacian_matrix, pairwise_matrix


def l2_to_mean(tree: Tree) -> jax.Array:
    """Σ_k ‖Θ_k − Θ̄‖², Θ̄ the mean over the tasks (Evgeniou & Pontil 2004, with the shared part free)."""
    task_count(tree)
    dtype = accumulation_dtype(tree)
    return total(map(squared_deviations, leaves_of(cast(tree, dtype))), dtype)


def l2_pairwise(tree: Tree, weights: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Σ_{i<j} w_ij ‖Θ_i − Θ_j‖² (Duong et al. 2015); without weights equal to K · `l2_to_mean`.

    Args:
      weights: float[K, K], read above the diagonal; None for 1. Raises ValueError for another shape or a negative
        weight.
    """
    count = task_count(tree)
    if weights is None:
        return count * l2_to_mean(tree)
    return _quadratic(pairwise_matrix(weights, count, accumulation_dtype(tree)), contrast_gram(tree, "mean"))


def laplacian(tree: Tree, adjacency: jax.typing.ArrayLike) -> jax.Array:
    """Σ_{i<j} a_ij ‖Θ_i − Θ_j‖² = tr(L G), L the graph's Laplacian (Evgeniou et al. 2005, section 3.1.3).

    Args:
      adjacency: float[K, K], symmetric, ≥ 0; its diagonal has no effect. Raises ValueError for another shape, and,
        where the values can be seen (NumPy, lists), for a negative or asymmetric one.
    """
    matrix = laplacian_matrix(adjacency, task_count(tree), accumulation_dtype(tree))
    return _quadratic(matrix, contrast_gram(tree, "mean"))


def l2_to_anchor(tree: Tree, anchor: Tree, importance: Tree | None = None) -> jax.Array:
    """Σ_k ‖Θ_k − anchor‖², with the pretrained parameters as anchor L2-SP (Li et al. 2018, without their factor α/2).

    With the diagonal Fisher information of earlier tasks as `importance` F, Σ F (Θ − anchor)²: elastic weight
    consolidation (Kirkpatrick et al. 2017, equation 3, without its factor 1/2).

    Args:
      anchor: pytree of the same structure, leaves [...] (one for all tasks) or [K, ...]; ValueError where it does not
        fit.
      importance: pytree of the same structure, leaves [K, ...] ≥ 0; None: 1.
    """
    task_count(tree)
    dtype = accumulation_dtype(tree)
    differences = subtract_anchor(cast(tree, dtype), anchor)
    if importance is None:
        return total(map(squared_norm, leaves_of(differences)), dtype)
    weighted = jax.tree.map(lambda x, weight: jnp.square(x) * jnp.asarray(weight, dtype), differences, importance)
    return total(map(jnp.sum, jax.tree.leaves(weighted)), dtype)


def kernel(tree: Tree, kernel: jax.typing.ArrayLike | None = None) -> jax.Array:
    """tr(K⁻¹ G): regularised multi-task learning with a task kernel (Evgeniou & Pontil 2004; Evgeniou et al. 2005).

    Args:
      kernel: float[K, K], symmetric positive definite. None for I + 11ᵀ, the kernel of Θ_k = Θ_0 + V_k with the common
        part and the deviations penalised alike: the penalty is then min over Θ_0 of ‖Θ_0‖² + Σ_k ‖Θ_k − Θ_0‖². Raises
        ValueError for another shape, and, where the values can be seen, for a matrix that is not positive definite.
    """
    return _quadratic(kernel_matrix(kernel, task_count(tree), accumulation_dtype(tree)), contrast_gram(tree))


def _quadratic(matrix: Matrix, products: jax.Array) -> jax.Array:
    return jnp.sum(jnp.asarray(matrix, products.dtype) * products)
