"""Exact proximal operators prox_{tΩ}(X) = argmin_Z  t·Ω(Z) + ½‖Z − X‖², and as optax transformations.

Where plain gradient steps on a large λ diverge (L2 to the mean: lr·2λ > 2) or never reach exact zeros (trace norm,
group lasso), take the optimizer's step on the losses and then the proximal operator with t = lr·λ. t may be a traced
scalar ≥ 0.

Each operator is x + step(x): the step alone is computed, to full relative precision, so that small differences between
tasks are not lost. Results have the dtypes of the leaves.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.sharing.gram import Center, Tree, accumulation_dtype, centered, contrast_basis, contrast_gram, task_count
from mtl_jax.sharing.spectrum import spectrum
from mtl_jax.sharing.structured import group_norms


def prox_l2_to_mean(tree: Tree, t: jax.typing.ArrayLike) -> Tree:
    """Proximal operator of t · `l2_to_mean`: Θ_k ← Θ̄ + (Θ_k − Θ̄)/(1 + 2t), leaves [K, ...] as they came."""
    return add(tree, _l2_to_mean_step(tree, t))


def prox_trace_norm(tree: Tree, t: jax.typing.ArrayLike, center: Center = None) -> Tree:
    """Proximal operator of t · `trace_norm`: singular values σ ← max(σ − t, 0) (Cai et al. 2010), leaves [K, ...].

    Args:
      center: None, "mean" or an anchor pytree, as in `trace_norm`: what is centred is shrunk, the center stays.
    """
    return add(tree, _trace_norm_step(tree, t, center))


def prox_group_lasso(tree: Tree, t: jax.typing.ArrayLike, groups: str = "entry") -> Tree:
    """Proximal operator of t · `group_lasso`: groups ← max(1 − t/‖Θ_g‖, 0) Θ_g (Yuan & Lin 2006), leaves [K, ...]."""
    return add(tree, _group_lasso_step(tree, t, groups))


def _l2_to_mean_step(tree: Tree, t: jax.typing.ArrayLike) -> Tree:
    """prox − tree, leaves [K, ...] in the dtype of accumulation."""
    task_count(tree)
    dtype = accumulation_dtype(tree)
    share = 1.0 - 1.0 / (1.0 + 2.0 * jnp.asarray(t, dtype))
    return jax.tree.map(lambda deviation: -share * deviation, centered(tree, "mean", dtype))


def _trace_norm_step(tree: Tree, t: jax.typing.ArrayLike, center: Center = None) -> Tree:
    """prox − tree, leaves [K, ...] in the dtype of accumulation."""
    count = task_count(tree)
    dtype = accumulation_dtype(tree)
    values, vectors = spectrum(contrast_gram(tree, center))
    live = values > 0
    sigma = jnp.sqrt(jnp.where(live, values, 1.0))
    # Directions of σ = 0 hold rounding only: they go with the rest, unless t = 0.
    t = jnp.asarray(t, dtype)
    lost = jnp.where(live, jnp.minimum(t / sigma, 1.0), jnp.where(t > 0, 1.0, 0.0))
    highest = jax.lax.Precision.HIGHEST
    basis = jnp.asarray(contrast_basis(count), dtype)
    shrink = jnp.matmul(vectors * lost[None, :], vectors.T, precision=highest)

    def step(x: jax.Array) -> jax.Array:
        # The mean and the contrasts of slices that share a large common part are formed apart (see `contrast_gram`).
        first = x[:1]
        in_basis = jnp.tensordot(basis.T, x - first, 1, precision=highest)
        mean_part = jnp.zeros((count, *(1,) * (x.ndim - 1)), dtype).at[0].set(np.sqrt(count))
        in_basis = in_basis + mean_part * first
        return -jnp.tensordot(jnp.matmul(basis, shrink, precision=highest), in_basis, 1, precision=highest)

    return jax.tree.map(step, centered(tree, center, dtype))


def _group_lasso_step(tree: Tree, t: jax.typing.ArrayLike, groups: str = "entry") -> Tree:
    """prox − tree, leaves [K, ...] in the dtype of accumulation."""
    task_count(tree)
    dtype = accumulation_dtype(tree)

    def step(x: jax.Array) -> jax.Array:
        norms = group_norms(x, groups)
        kept_whole = norms > 0
        return (
            -jnp.where(kept_whole, jnp.minimum(jnp.asarray(t, dtype) / jnp.where(kept_whole, norms, 1.0), 1.0), 0.0) * x
        )

    return jax.tree.map(lambda x: step(jnp.asarray(x, dtype)), tree)


def as_transform(prox: Callable[..., Tree], t: jax.typing.ArrayLike, **options) -> optax.GradientTransformation:
    """The operator behind an optimizer: `optax.chain(optimizer, as_transform(prox_trace_norm, lr * strength))`.

    The updates that leave take the parameters to prox(parameters + updates that entered), exact zeros included.

    Args:
      prox: `prox_l2_to_mean`, `prox_trace_norm`, `prox_group_lasso`, or any tree, t -> tree.
      t: scalar ≥ 0, lr · λ; may be traced.
      **options: of the operator, such as `center` or `groups`.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("a proximal operator acts on parameters: call update(updates, state, params)")
        return subtract(prox(add(params, updates), t, **options), params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def subtract(target: Tree, params: Tree, updates: Tree) -> Tree:
    """The updates that take `params` to `target`, in the dtypes of `updates`."""
    return jax.tree.map(lambda q, p, u: (q - p).astype(u.dtype), target, params, updates)


def add(tree: Tree, steps: Tree) -> Tree:
    """tree + steps, summed in the wider dtype, in the dtypes of the tree."""

    def add(x: jax.Array, s: jax.Array) -> jax.Array:
        wide = accumulation_dtype((x, s))
        return (x.astype(wide) + s.astype(wide)).astype(x.dtype)

    return jax.tree.map(add, jax.tree.map(jnp.asarray, tree), steps)
