"""Penalties on the singular values σ of the tasks' parameter matrix, through the K×K Gram matrix, without an SVD.

The tree is one matrix of K columns, Θ_k = all leaves of task k. `center` is subtracted first: None, "mean" (over the
tasks), or an anchor pytree with leaves [...] or [K, ...]; "mean" penalises how the tasks differ and leaves what they
share free. Values are float32 scalars (float64 if a leaf is). Where σ = 0 the subgradient 0 is taken: gradients and
second derivatives are finite for equal tasks, repeated singular values, zeros and K = 1. A σ counts as 0 where it is
below the rounding of its Gram matrix: in float32 about 1e-3 of the norm of the columns, or of their deviations from the
mean, that it combines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram import (
    Center,
    Tree,
    accumulation_dtype,
    centered,
    congruence,
    contrast_basis,
    contrast_gram,
    inner_products,
    task_count,
    total,
)
from mtl_jax.sharing.gram_spectrum import SpectralFunction, spectral_sum, spectrum
from mtl_jax.sharing.low_rank_stack import require_arrays

UNFOLDINGS = ("last", "tucker", "tt")


def trace_norm(tree: Tree, unfolding: str = "last", center: Center = None) -> jax.Array:
    """Σ_i σ_i, the trace (nuclear) norm (Argyriou et al. 2008); for tensors as in Yang & Hospedales 2017 (1606.04038).

    Args:
      tree: leaves [K, ...].
      unfolding: "last": the whole tree as one matrix features × tasks. "tucker": for each leaf, the task axis moved to
        the end, the sum of the trace norms of its unfoldings along every axis; "tt": of those that split the axes into
        the first i and the rest. The latter two need the Gram matrix of the smaller side of each unfolding, which for a
        d×d weight is d×d, not K×K, and its eigenvalues: O(d³).
      center: see the module.
    """
    if unfolding == "last":
        return spectral_sum(_power(0.5), contrast_gram(tree, center))
    if unfolding not in UNFOLDINGS:
        raise ValueError(f"unfolding must be one of {', '.join(UNFOLDINGS)}, not {unfolding!r}")
    task_count(tree)
    require_arrays(f"the unfolding {unfolding!r}", tree)
    leaves, structure = jax.tree.flatten(tree)
    centers = [center] * len(leaves) if center is None or isinstance(center, str) else structure.flatten_up_to(center)
    terms = (unfolded_trace_norms(*pair, unfolding) for pair in zip(leaves, centers, strict=True))
    return total((term for terms_of_leaf in terms for term in terms_of_leaf), accumulation_dtype(tree))


def subspace(tree: Tree, dim: int = 1, center: Center = None) -> jax.Array:
    """Σ_{i>dim} σ_i²: the part outside the best common subspace of `dim` directions (ASO; Ando & Zhang 2005).

    Equal to min over Θ = UV + E with rank(U) = dim of ‖E‖². Raises ValueError for dim < 0.
    """
    if dim < 0:
        raise ValueError(f"dim must be ≥ 0, not {dim}")
    return spectral_sum(_residual(int(dim)), contrast_gram(tree, center))


def schatten(tree: Tree, p: float = 0.5, center: Center = None) -> jax.Array:
    """Σ_i σ_i^p, the Schatten p-(quasi-)norm to its p-th power (Nie et al. 2012); p = 1 is the trace norm, p = 2 ‖Θ‖².

    Raises ValueError for p ≤ 0. For p < 1 the gradient grows without bound as σ → 0, and is 0 there.
    """
    if not p > 0:
        raise ValueError(f"p must be > 0, not {p}")
    return spectral_sum(_power(0.5 * float(p)), contrast_gram(tree, center))


def log_det(tree: Tree, eps: float = 1.0, center: Center = None) -> jax.Array:
    """log det(eps·I + ΘᵀΘ) = Σ_i log(eps + σ_i²), K terms: a smooth surrogate of the rank (Fazel et al. 2003).

    Raises ValueError for eps ≤ 0.
    """
    if not eps > 0:
        raise ValueError(f"eps must be > 0, not {eps}")
    return spectral_sum(_log(float(eps)), contrast_gram(tree, center))


def mtrl(tree: Tree, center: Center = None) -> jax.Array:
    """tr(Θ Ω⁻¹ Θᵀ) at its best task covariance Ω ⪰ 0, tr Ω = 1 (Zhang & Yeung 2010): the trace norm squared."""
    return jnp.square(trace_norm(tree, center=center))


def mtrl_covariance(tree: Tree, center: Center = None) -> jax.Array:
    """The task covariance that MTRL learns, (ΘᵀΘ)^½ / tr((ΘᵀΘ)^½): float32[K, K]; I/K where all parameters are zero.

    Not meant to be differentiated: `mtrl` has it eliminated. Source: Zhang & Yeung 2010, equation 13.
    """
    products = contrast_gram(tree, center)
    count = products.shape[0]
    values, vectors = spectrum(products)
    basis = jnp.asarray(contrast_basis(count), products.dtype)
    root = congruence(congruence(jnp.diag(jnp.sqrt(values)), vectors.T), basis.T)
    trace = jnp.trace(root)
    return jnp.where(trace > 0, root / jnp.where(trace > 0, trace, 1.0), jnp.eye(count, dtype=root.dtype) / count)


def unfolded_trace_norms(leaf: jax.Array, center: Center, unfolding: str) -> list[jax.Array]:
    """The terms of the "tucker" or "tt" trace norm of one leaf [K, ...], in the order of its axes, tasks last."""
    by_tasks = spectral_sum(_power(0.5), contrast_gram(leaf, center))
    tensor = jnp.moveaxis(centered(leaf, center, accumulation_dtype(leaf)), 0, -1)
    if tensor.ndim == 1:  # one number a task: a single unfolding
        return [by_tasks]
    terms = []
    for axis in range(tensor.ndim - 1 if unfolding == "tucker" else tensor.ndim - 2):
        if unfolding == "tucker":
            rows = jnp.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
        else:
            rows = tensor.reshape(math.prod(tensor.shape[: axis + 1]), -1)
        smaller = rows if rows.shape[0] <= rows.shape[1] else rows.T
        terms.append(spectral_sum(_power(0.5), inner_products(smaller)))
    return [*terms, by_tasks]


@cache
def _power(exponent: float) -> SpectralFunction:
    """λ^exponent; value, slope and curvature 0 at λ = 0 (for exponent 1 the true ones)."""

    def guarded(scale: float, power: float) -> Callable[[jax.Array], jax.Array]:
        if power == 0:
            return lambda values: jnp.full_like(values, scale)
        return lambda values: jnp.where(values > 0, scale * jnp.where(values > 0, values, 1.0) ** power, 0.0)

    first, second = exponent, exponent * (exponent - 1)
    curvature = jnp.zeros_like if second == 0 else guarded(second, exponent - 2)
    return SpectralFunction(guarded(1.0, exponent), guarded(first, exponent - 1), curvature)


@cache
def _log(eps: float) -> SpectralFunction:
    return SpectralFunction(
        lambda x: math.log(eps) + jnp.log1p(x / eps),  # log(eps + x) would round small x away
        lambda x: 1.0 / (eps + x),
        lambda x: -1.0 / (eps + x) ** 2,
    )


@cache
def _residual(dim: int) -> SpectralFunction:
    def beyond(values: jax.Array) -> jax.Array:
        return jnp.where(jnp.arange(values.shape[0]) >= dim, jnp.ones_like(values), jnp.zeros_like(values))

    return SpectralFunction(lambda x: beyond(x) * x, beyond, jnp.zeros_like)
