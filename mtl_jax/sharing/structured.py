"""Penalties that are not functions of the K×K Gram matrix: taken leaf by leaf and summed.

Values are float32 scalars (float64 if a leaf is).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram import Tree, accumulation_dtype, cast, inner_products, task_count, total
from mtl_jax.sharing.low_rank_stack import LowRankStack, leaves_of, require_arrays

GROUPS = ("entry", "row")


def low_rank(factors: Tree, others: Tree | None = None) -> jax.Array:
    """½(‖U‖² + ‖V‖²) for factorised parameters Θ = UVᵀ; at the best factors the trace norm of Θ (Srebro et al. 2004).

    Args:
      factors: U, or one pytree of all the factors; leaves of any shape.
      others: V; None if the first pytree has both.
    """
    dtype = accumulation_dtype((factors, others))
    return 0.5 * total((jnp.sum(jnp.square(jnp.asarray(x, dtype))) for x in jax.tree.leaves((factors, others))), dtype)


def group_lasso(tree: Tree, groups: str = "entry") -> jax.Array:
    """Σ_g ‖Θ_g‖, the ℓ2,1 norm: a group is zero in all tasks or in none (Obozinski et al. 2010; Argyriou et al. 2008).

    Args:
      tree: leaves [K, ...].
      groups: "entry": one position of the leaf across the K tasks, the published norm for one vector a task. "row": all
        positions of one input feature (all axes but the last, for leaves of three and more axes) across the tasks, so
        that an input of a weight [K, D_in, D_out] is kept or dropped for all tasks and outputs.

    At a group of zeros the subgradient 0 is taken.
    """
    task_count(tree)
    require_arrays("group_lasso", tree)
    dtype = accumulation_dtype(tree)
    return total((jnp.sum(group_norms(jnp.asarray(x, dtype), groups)) for x in jax.tree.leaves(tree)), dtype)


def group_norms(leaf: jax.Array, groups: str = "entry") -> jax.Array:
    """Norms of the groups of a leaf [K, ...], axes of length 1 where a group extends; gradient 0 at norm 0."""
    if groups not in GROUPS:
        raise ValueError(f"groups must be one of {', '.join(GROUPS)}, not {groups!r}")
    axes = (0, leaf.ndim - 1) if groups == "row" and leaf.ndim >= 3 else (0,)
    squares = jnp.sum(jnp.square(leaf), axis=axes, keepdims=True)
    live = squares > 0
    return jnp.where(live, jnp.sqrt(jnp.where(live, squares, 1.0)), 0.0)


def orthogonality(tree: Tree) -> jax.Array:
    """Σ_{i<j} ‖Θ_iᵀ Θ_j‖²_F per leaf: columns of different tasks orthogonal (Bousmalis et al. 2016; Liu et al. 2017).

    The papers take hidden states in the place of Θ; leaves [K, N, D] of hidden states work here too.

    Args:
      tree: leaves [K, ..., D], for each task a matrix with D columns; a leaf [K, n] is one column of n.

    Cost: products of size [K, n, n] or [K·D, K·D], whichever is smaller, n the number of rows.
    """
    task_count(tree)
    dtype = accumulation_dtype(tree)
    return total(map(_orthogonality, leaves_of(cast(tree, dtype))), dtype)


def subspace_orthogonality(tree: Tree, subspaces: int = 2, gates: int = 1) -> jax.Array:
    """Σ_k Σ_{s<u} ‖Θ_{k,s}ᵀ Θ_{k,u}‖²_F: the parts of a task's layer that write to its subspaces are orthogonal (sluice
    networks: Ruder et al. 2019, equation 5).

    Args:
      tree: leaves [K, N, G·D_i], or [K, G·D_i] for N = 1. Outputs of leaves of one layer (first key, or first part of a
        path) with the same N are joined and cut into subspaces: with the input kernels of a BiLSTM's two directions,
        two subspaces are one direction each.
      subspaces: their number.
      gates: G matrices that are joined in a leaf, 4 in an LSTM; each is penalised separately.

    Raises:
      ValueError: the outputs are not divisible by gates and subspaces.
    """
    task_count(tree)
    require_arrays("subspace_orthogonality", tree)
    dtype = accumulation_dtype(tree)
    groups: dict[tuple, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        layer = jax.tree_util.keystr(path[:1], simple=True).split("/")[0]
        matrix = jnp.asarray(leaf, dtype).reshape(leaf.shape[0], -1, leaf.shape[-1])
        groups.setdefault((layer, matrix.shape[1]), []).append(matrix)
    return total((_between_subspaces(leaves, subspaces, gates) for leaves in groups.values()), dtype)


def _between_subspaces(leaves: list[jax.Array], subspaces: int, gates: int) -> jax.Array:
    width = sum(x.shape[-1] for x in leaves)
    if any(x.shape[-1] % gates for x in leaves) or (width // gates) % subspaces:
        raise ValueError(f"{width} outputs of {gates} gates cannot be cut into {subspaces} subspaces")
    joined = jnp.concatenate([x.reshape(*x.shape[:-1], gates, -1) for x in leaves], axis=-1)  # [K, N, G, D]
    parts = joined.reshape(*joined.shape[:-1], subspaces, -1)
    products = jnp.einsum("kngsd,knguf->kgsudf", parts, parts, precision=jax.lax.Precision.HIGHEST)
    pairs = jnp.sum(jnp.square(products), axis=(0, 1, 4, 5))
    return jnp.sum(jnp.triu(pairs, 1))


def _orthogonality(leaf: jax.Array) -> jax.Array:
    if isinstance(leaf, LowRankStack):
        return jnp.sum(jnp.triu(leaf.squared_overlaps(), 1))
    count = leaf.shape[0]
    matrix = leaf.reshape(count, -1, leaf.shape[-1] if leaf.ndim >= 3 else 1)
    highest = jax.lax.Precision.HIGHEST
    if matrix.shape[1] <= count * matrix.shape[2]:
        # ‖Θ_iᵀΘ_j‖² = ⟨Θ_iΘ_iᵀ, Θ_jΘ_jᵀ⟩: K products of n×n instead of K² of D×D.
        pairs = inner_products(jnp.einsum("kad,kbd->kab", matrix, matrix, precision=highest))
    else:
        products = jnp.einsum("iad,jae->ijde", matrix, matrix, precision=highest)
        pairs = jnp.sum(jnp.square(products), axis=(2, 3))
    return jnp.sum(jnp.triu(pairs, 1))
