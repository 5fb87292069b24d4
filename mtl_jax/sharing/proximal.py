"""Exact proximal operators prox_{tΩ}(X) = argmin_Z  t·Ω(Z) + ½‖Z − X‖², and as optax transformations.

Where gradient steps with a large λ diverge (lr · λ · `curvature` > 2) or never reach exact zeros (trace norm, group
lasso), take the optimizer's step on the losses and then the proximal operator with t = lr·λ. t may be a traced scalar
≥ 0, of any size.

Each operator is x + step(x): only the step is computed, to full relative precision, so that small differences between
tasks are not lost. Results are pytrees with leaves [K, ...] of the input dtypes, once differentiable in X and t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax.sharing import shrinkage
from mtl_jax.sharing.gram import (
    Center,
    Tree,
    accumulation_dtype,
    centered,
    contrast_basis,
    contrast_gram,
    in_contrasts,
    subtract_anchor,
    task_count,
)
from mtl_jax.sharing.gram_spectrum import eigenvalues, matrix_function, spectrum
from mtl_jax.sharing.structured import group_norms
from mtl_jax.sharing.task_matrices import Matrix, kernel_matrix, laplacian_matrix, pairwise_matrix


def prox_l2_to_mean(tree: Tree, t: jax.typing.ArrayLike) -> Tree:
    """Proximal operator of t · `l2_to_mean`: Θ_k ← Θ̄ + (Θ_k − Θ̄)/(1 + 2t)."""
    task_count(tree)
    dtype = accumulation_dtype(tree)
    return _shrunk(tree, centered(tree, "mean", dtype), jnp.asarray(t, dtype))


def prox_l2_to_anchor(tree: Tree, t: jax.typing.ArrayLike, anchor: Tree, importance: Tree | None = None) -> Tree:
    """Proximal operator of t · `l2_to_anchor`: Θ_k ← anchor + (Θ_k − anchor)/(1 + 2t); with `importance` F 1 + 2tF."""
    task_count(tree)
    dtype = accumulation_dtype(tree)
    deviations = subtract_anchor(_cast(tree, dtype), anchor)
    if importance is None:
        return _shrunk(tree, deviations, jnp.asarray(t, dtype))

    def moved(x: jax.Array, deviation: jax.Array, weight: jax.Array) -> jax.Array:
        (shrunk,) = jax.tree.leaves(_shrunk([x], [deviation], jnp.asarray(t, dtype) * jnp.asarray(weight, dtype)))
        return shrunk

    return jax.tree.map(moved, tree, deviations, importance)


def prox_l2_pairwise(tree: Tree, t: jax.typing.ArrayLike, weights: jax.typing.ArrayLike | None = None) -> Tree:
    """Proximal operator of t · `l2_pairwise`: X ← (I + 2tL)⁻¹ X; without weights that of K·t · `l2_to_mean`."""
    count, dtype = task_count(tree), accumulation_dtype(tree)
    if weights is None:
        return prox_l2_to_mean(tree, count * jnp.asarray(t, dtype))
    return _quadratic(tree, t, pairwise_matrix(weights, count, dtype))


def prox_laplacian(tree: Tree, t: jax.typing.ArrayLike, adjacency: jax.typing.ArrayLike) -> Tree:
    """Proximal operator of t · `laplacian`: X ← (I + 2tL)⁻¹ X; for t → ∞ the mean of each connected component."""
    return _quadratic(tree, t, laplacian_matrix(adjacency, task_count(tree), accumulation_dtype(tree)))


def prox_kernel(tree: Tree, t: jax.typing.ArrayLike, kernel: jax.typing.ArrayLike | None = None) -> Tree:
    """Proximal operator of t · `kernel`: X ← (I + 2tK⁻¹)⁻¹ X."""
    return _quadratic(tree, t, kernel_matrix(kernel, task_count(tree), accumulation_dtype(tree)))


def prox_trace_norm(tree: Tree, t: jax.typing.ArrayLike, center: Center = None) -> Tree:
    """Proximal operator of t · `trace_norm`: singular values σ ← max(σ − t, 0) (Cai et al. 2010).

    Args:
      center: None, "mean" or an anchor pytree, as in `trace_norm`: what is centred is shrunk, the center stays.
    """
    products = contrast_gram(tree, center)
    removed = matrix_function(shrinkage.SOFT_THRESHOLD, products, jnp.asarray(t, products.dtype))
    return _subtract_part(tree, centered(tree, center, products.dtype), removed)


def prox_mtrl(tree: Tree, t: jax.typing.ArrayLike, center: Center = None) -> Tree:
    """Proximal operator of t · `mtrl`, t·(Σσ)²: σ ← max(σ − 2tS, 0), S the sum of the result; `center` as above."""
    products = contrast_gram(tree, center)
    decomposed = spectrum(jax.lax.stop_gradient(products))
    threshold = shrinkage.squared_sum_threshold(eigenvalues(products, decomposed), jnp.asarray(t, products.dtype))
    removed = matrix_function(shrinkage.SOFT_THRESHOLD, products, threshold, decomposed)
    return _subtract_part(tree, centered(tree, center, products.dtype), removed)


def prox_subspace(tree: Tree, t: jax.typing.ArrayLike, dim: int = 1, center: Center = None) -> Tree:
    """Proximal operator of t · `subspace`: σ_i ← σ_i/(1 + 2t) for i > dim; `center` as above.

    Ω is not convex: where σ_dim = σ_{dim+1} one of several minimisers is taken. Raises ValueError for dim < 0.
    """
    if dim < 0:
        raise ValueError(f"dim must be ≥ 0, not {dim}")
    products = contrast_gram(tree, center)
    removed = matrix_function(shrinkage.beyond(int(dim)), products, jnp.asarray(t, products.dtype))
    return _subtract_part(tree, centered(tree, center, products.dtype), removed)


def prox_group_lasso(tree: Tree, t: jax.typing.ArrayLike, groups: str = "entry") -> Tree:
    """Proximal operator of t · `group_lasso`: groups ← max(1 − t/‖Θ_g‖, 0) Θ_g (Yuan & Lin 2006)."""
    task_count(tree)
    dtype = accumulation_dtype(tree)
    threshold = jnp.asarray(t, dtype)

    def step(x: jax.Array) -> jax.Array:
        return -shrinkage.soft_threshold(group_norms(x, groups), threshold) * x

    return add(tree, jax.tree.map(step, _cast(tree, dtype)))


def _shrunk(tree: Tree, differences: Tree, t: jax.Array) -> Tree:
    """The tree minus 2t/(1 + 2t) times its differences from where the penalty is zero."""
    fraction = shrinkage.saturating_fraction(2.0 * t)
    return add(tree, jax.tree.map(lambda difference: -fraction * difference, differences))


def _quadratic(tree: Tree, t: jax.typing.ArrayLike, matrix: Matrix) -> Tree:
    """(I + 2tM)⁻¹ X, the operator of t · tr(M G); M [K, K] from `task_matrices`, in the basis of mean and contrasts."""
    dtype = accumulation_dtype(tree)
    return _subtract_part(tree, _cast(tree, dtype), matrix_function(shrinkage.RESOLVENT, matrix, jnp.asarray(t, dtype)))


def _subtract_part(tree: Tree, centred: Tree, removed: jax.Array) -> Tree:
    """The tree minus `removed` [K, K] times a centred tree; `removed` is in the basis of mean and contrasts."""
    basis = jnp.asarray(contrast_basis(removed.shape[0]), removed.dtype)
    back = -jnp.matmul(basis, removed, precision=jax.lax.Precision.HIGHEST)

    def step(x: jax.Array) -> jax.Array:
        return jnp.tensordot(back, in_contrasts(x), 1, precision=jax.lax.Precision.HIGHEST)

    return add(tree, jax.tree.map(step, centred))


def _cast(tree: Tree, dtype: jnp.dtype) -> Tree:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def as_transform(prox: Callable[..., Tree], t: jax.typing.ArrayLike, **options: Any) -> optax.GradientTransformation:
    """The operator after an optimizer: `optax.chain(optimizer, as_transform(prox_trace_norm, lr * strength))`.

    Its updates take the parameters to prox(parameters + incoming updates), exact zeros included.

    Args:
      prox: an operator of `PROXIMAL`, or any (tree, t) -> tree.
      t: scalar ≥ 0, lr · λ; may be traced.
      **options: options of the operator, such as `center`, `groups` or `anchor`.

    Raises:
      ValueError: at update, where no parameters are passed.
    """

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        if params is None:
            raise ValueError("a proximal operator acts on parameters: call update(updates, state, params)")
        return subtract(prox(add(params, updates), t, **options), params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def subtract(target: Tree, params: Tree, updates: Tree) -> Tree:
    """The updates that take `params` to `target`, in the dtypes of `updates`."""
    return jax.tree.map(lambda q, p, u: (q - p).astype(u.dtype), target, params, updates)


def add(tree: Tree, steps: Tree) -> Tree:
    """tree + steps, summed in the wider dtype, in the dtypes of the tree."""

    def sum_of(x: jax.Array, s: jax.Array) -> jax.Array:
        wide = accumulation_dtype((x, s))
        return (x.astype(wide) + s.astype(wide)).astype(x.dtype)

    return jax.tree.map(sum_of, jax.tree.map(jnp.asarray, tree), steps)
