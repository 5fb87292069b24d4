"""The K×K Gram matrix of K pytrees: the one primitive under soft sharing, gradient aggregation and relatedness.

A tree holds the K tasks in leaves `[K, ...]`; the inner product of two tasks is summed over all leaves, as if each
task's leaves were one long vector; a leaf may be a `LowRankStack`. Products are `tensordot`s over the trailing axes,
never `reshape(K, -1)`: over sharded features the first needs one all-reduce of K×K, the second gathers the whole stack.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.low_rank_stack import LowRankStack, is_stack, leaves_of

Tree: TypeAlias = Any  # a pytree of arrays, mostly with leaves [K, ...]
Center: TypeAlias = Any  # None, "mean", or an anchor pytree with leaves [...] or [K, ...]


def task_count(tree: Tree) -> int:
    """K, the common length of the leading axis. Raises ValueError where there is none."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError("a pytree with leaves [K, ...] is needed; this one has no leaves")
    shapes = {jax.tree_util.keystr(path) or "the tree": jnp.shape(leaf) for path, leaf in leaves}
    if any(not shape for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        raise ValueError(
            f"a penalty over leaves of different shapes: the first axis must be the K tasks in every leaf; {listed}"
        )
    return next(iter(shapes.values()))[0]


def accumulation_dtype(tree: Tree) -> jnp.dtype:
    """float64 where a leaf is float64, else float32 (bfloat16 is summed in float32)."""
    wide = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def total(terms: Iterable[jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """The sum of the terms; 0 of this dtype where there are none."""
    return sum(terms, start=jnp.zeros((), dtype))


def inner_products(leaf: jax.Array | LowRankStack) -> jax.Array:
    """float[K, K] of one leaf [K, ...], already in the dtype to accumulate in."""
    if isinstance(leaf, LowRankStack):
        return leaf.inner_products()
    axes = tuple(range(1, leaf.ndim))
    return jnp.tensordot(leaf, leaf, (axes, axes), precision=jax.lax.Precision.HIGHEST)


def gram(tree: Tree, center: Center = None) -> jax.Array:
    """Inner products between the K slices of a pytree, summed over its leaves.

    Args:
      tree: leaves [K, ...], any float dtype.
      center: what is subtracted before the product (afterwards it would cancel): None, "mean" (over the tasks), or an
        anchor pytree of the tree's structure with leaves [...] or [K, ...].

    Returns:
      float32[K, K] (float64 if a leaf is float64), symmetric.
    """
    task_count(tree)
    dtype = accumulation_dtype(tree)
    return total((inner_products(leaf) for leaf in leaves_of(centered(tree, center, dtype))), dtype)


def normalised_gram(tree: Tree, center: Center = None) -> jax.Array:
    """Cosines between the K slices: float32[K, K], 1 on the diagonal; a slice of zeros has cosine 0 with all."""
    products = gram(tree, center)
    squares = jnp.diagonal(products)
    live = squares > 0
    scale = jnp.where(live, jax.lax.rsqrt(jnp.where(live, squares, 1.0)), 0.0)
    return products * scale[:, None] * scale[None, :]


def centered(tree: Tree, center: Center, dtype: jnp.dtype) -> Tree:
    """The tree minus its center, leaves [K, ...] in `dtype`."""
    tree = cast(tree, dtype)
    if center is None:
        return tree
    if isinstance(center, str):
        if center != "mean":
            raise ValueError(f'center must be None, "mean" or an anchor pytree, not {center!r}')
        return jax.tree.map(_less_mean, tree, is_leaf=is_stack)
    return subtract_anchor(tree, center)


def cast(tree: Tree, dtype: jax.typing.DTypeLike) -> Tree:
    """The leaves in a dtype."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if isinstance(x, LowRankStack) else jnp.asarray(x, dtype), tree, is_leaf=is_stack
    )


def subtract_anchor(tree: Tree, anchor: Tree) -> Tree:
    """Differences Θ_k − anchor; anchor leaves [...] (one for all tasks) or [K, ...]."""
    structure, expected = jax.tree.structure(anchor), jax.tree.structure(tree)
    if structure != expected:
        raise ValueError(f"the anchor's structure {structure} is not that of the parameters, {expected}")
    return jax.tree_util.tree_map_with_path(_less_anchor_leaf, tree, anchor, is_leaf=is_stack)


def _less_anchor_leaf(path, x: Any, a: Any) -> Any:
    if isinstance(x, LowRankStack):
        return x.minus(a.astype(x.left.dtype))
    shape = jnp.shape(a)
    if shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"anchor leaf {jax.tree_util.keystr(path)} has shape {shape}; it must be {x.shape[1:]} or {x.shape}"
        )
    return x - jnp.asarray(a, x.dtype).reshape((-1, *x.shape[1:]))


def _less_mean(x: jax.Array) -> jax.Array:
    if isinstance(x, LowRankStack):
        raise ValueError("the mean of products of factors is not of their rank; `contrast_gram` needs none")
    # The matrix sends a common part to zero, so the first slice may go first: near-equal slices then differ exactly.
    # For the same reason nothing flows into it. A product is several times faster on CPU than a mean over the leading
    # axis.
    deviations = x - jax.lax.stop_gradient(x[:1])
    count = x.shape[0]
    projection = jnp.asarray(np.eye(count) - 1.0 / count, x.dtype)
    return jnp.tensordot(projection, deviations, 1, precision=jax.lax.Precision.HIGHEST)


@jax.jit  # leaves of one shape are traced once
def squared_deviations(leaf: jax.Array | LowRankStack) -> jax.Array:
    """Σ_k ‖x_k − x̄‖² of a leaf [K, ...], already in the dtype to accumulate in."""
    if isinstance(leaf, LowRankStack):
        return jnp.trace(contrast_gram(leaf, "mean"))
    return _squared_deviations(leaf)


def squared_norm(leaf: jax.Array | LowRankStack) -> jax.Array:
    """Σ_k ‖x_k‖² of a leaf [K, ...]."""
    return leaf.squared_norms().sum() if isinstance(leaf, LowRankStack) else jnp.sum(jnp.square(leaf))


@jax.custom_jvp
def _squared_deviations(leaf: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(_less_mean(leaf)))


@_squared_deviations.defjvp
def _squared_deviations_jvp(primals, tangents):
    # Deviations add up to zero, so the mean's tangent adds nothing: the gradient 2(x_k − x̄) needs no second product.
    (leaf,), (tangent,) = primals, tangents
    deviations = _less_mean(leaf)
    return jnp.sum(jnp.square(deviations)), 2.0 * jnp.sum(deviations * tangent)


def contrast_basis(count: int) -> np.ndarray:
    """Orthogonal float64[K, K]: column 0 is 1/√K, the others (Helmert's contrasts) sum to zero."""
    basis = np.zeros((count, count))
    basis[:, 0] = 1.0 / np.sqrt(count)
    for column in range(1, count):
        basis[:column, column] = 1.0
        basis[column, column] = -column
        basis[:, column] /= np.sqrt(column * (column + 1))
    return basis


def contrast_gram(tree: Tree, center: Center = None) -> jax.Array:
    """QᵀGQ with Q = `contrast_basis(K)` and G the Gram matrix, entries right relative to their own row and column.

    Row 0 stands for the tasks' mean, the others for their differences, which are formed before any product. In G itself
    the differences of columns that start from one pretrained tree are lost in float32; here they have entries of their
    own, of full relative precision. With center="mean" row and column 0 are exactly zero.

    Args and returns: as `gram`, float32[K, K].
    """
    count = task_count(tree)
    dtype = accumulation_dtype(tree)
    only_differences = isinstance(center, str) and center == "mean"
    tree = centered(tree, None if only_differences else center, dtype)
    products = total((_split_leaf(leaf, only_differences) for leaf in leaves_of(tree)), dtype)
    if only_differences:
        to_contrasts = contrast_basis(count)
        to_contrasts[:, 0] = 0.0
    else:
        to_contrasts = _to_contrasts(count)
    return congruence(products, jnp.asarray(to_contrasts, dtype))


def _split_leaf(leaf: jax.Array | LowRankStack, only_differences: bool) -> jax.Array:
    if isinstance(leaf, LowRankStack):
        return inner_products(leaf.differences() if only_differences else leaf.first_and_differences())
    return _split_products(leaf, only_differences)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _split_products(leaf: jax.Array, only_differences: bool) -> jax.Array:
    """Inner products of Z = [x_0, x_1 − x_0, …], or of the differences alone."""
    return inner_products(_differences(leaf) if only_differences else _first_and_differences(leaf))


@_split_products.defjvp
def _split_products_jvp(only_differences, primals, tangents):
    # Half of the symmetric derivative, and the step from x to Z after the contraction: the backward pass then has one
    # product with the long side, where autodiff would write three.
    (leaf,), (tangent,) = primals, tangents
    split = _differences(leaf) if only_differences else _first_and_differences(leaf)
    axes = tuple(range(1, leaf.ndim))
    half = jnp.tensordot(tangent, split, (axes, axes), precision=jax.lax.Precision.HIGHEST)
    if not only_differences:
        change = jnp.asarray(_to_differences(leaf.shape[0]), leaf.dtype)
        half = jnp.matmul(change, half, precision=jax.lax.Precision.HIGHEST)
    return inner_products(split), half + half.T


def in_contrasts(leaf: jax.Array) -> jax.Array:
    """QᵀX of a leaf [K, ...], already in the dtype to accumulate in: row 0 √K times the mean, then the contrasts."""
    change = jnp.asarray(_to_contrasts(leaf.shape[0]).T, leaf.dtype)
    return jnp.tensordot(change, _first_and_differences(leaf), 1, precision=jax.lax.Precision.HIGHEST)


def _to_contrasts(count: int) -> np.ndarray:
    """TQ, where X = Z T with Z = [x_0, x_1 − x_0, …], and T has ones on its diagonal and in row 0: so XQ = Z (TQ)."""
    matrix = contrast_basis(count)
    matrix[0, 0], matrix[0, 1:] = np.sqrt(count), 0.0
    return matrix


def congruence(matrix: jax.Array, change: jax.Array) -> jax.Array:
    """changeᵀ · matrix · change, all [K, K], at highest precision."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(jnp.matmul(change.T, matrix, precision=highest), change, precision=highest)


@jax.custom_jvp
def _first_and_differences(x: jax.Array) -> jax.Array:
    return x - jnp.concatenate([jnp.zeros_like(x[:1]), jnp.broadcast_to(x[:1], (x.shape[0] - 1, *x.shape[1:]))])


@_first_and_differences.defjvp
def _first_and_differences_jvp(primals, tangents):
    # As a product, whose transpose is one too: twice as fast on CPU as the sum over the leading axis that autodiff
    # writes.
    (x,), (tangent,) = primals, tangents
    change = jnp.asarray(_to_differences(x.shape[0]), x.dtype)
    moved = jnp.tensordot(change, tangent, 1, precision=jax.lax.Precision.HIGHEST)
    return _first_and_differences(x), moved


def _to_differences(count: int) -> np.ndarray:
    """D of Z = DX: ones on the diagonal, −1 below the first."""
    change = np.eye(count)
    change[1:, 0] = -1.0
    return change


def _differences(x: jax.Array) -> jax.Array:
    return x - jax.lax.stop_gradient(x[:1])  # contrasts follow, and of a common part they are zero
