"""Weights from the gradients of the tasks over the shared parameters: ExcessMTL and DB-MTL."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.loss_weights.base import LossWeights, Signals, gradient_norms, mean_over, require_signal
from mtl_jax.balancing.options import Number
from mtl_jax.sharing.gram import Tree, accumulation_dtype, total


class ExcessState(NamedTuple):
    """squares: sums of squared gradients, leaves [K, ...]; weights float[K], mean 1; baseline float[K]: sum of the
    excess risks during warm-up; seen int32[K]: updates in which each task was present.
    """

    squares: Tree
    weights: jax.Array
    baseline: jax.Array
    seen: jax.Array


def excess_mtl(step_size: Number = 1e-2, warmup: int = 1) -> LossWeights:
    """More weight to tasks whose loss can still fall: α_k ← α_k exp(η E_k / E_k(0)), scaled to mean 1 (He et al. 2024,
    equations 6 to 9).

    E_k = Σ g² / √(S + 1e-7) over the shared parameters estimates the excess risk, S the sum of all g² of the task so
    far (the state holds K copies of the shared parameters). E(0) is its mean over the first `warmup` updates, during
    which α stays 1. Σ α is K as in the authors' code, not 1 as in the paper: the plain sum at first. Raises
    ValueError unless η = `step_size` > 0 and warmup ≥ 1.
    """
    options.check_interval("step_size", step_size, 0.0, ends="()")
    options.check_integer("warmup", warmup, 1)

    def init(count: int, shared: Tree) -> ExcessState:
        squares = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), accumulation_dtype(leaf)), shared)
        return ExcessState(squares, jnp.ones(count), jnp.zeros(count), jnp.zeros(count, jnp.int32))

    def update(signals: Signals, state: ExcessState):
        present, dtype = signals.present, state.weights.dtype
        gradients = jax.lax.stop_gradient(require_signal(signals, "gradients", "excess_mtl"))

        def with_risk(squares: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
            mask = present.reshape((-1, *(1,) * (g.ndim - 1)))
            square = jnp.where(mask, g.astype(squares.dtype), 0.0) ** 2
            summed = squares + square
            return summed, jnp.sum(square / jnp.sqrt(summed + 1e-7), axis=tuple(range(1, g.ndim))).astype(dtype)

        pairs = jax.tree.map(with_risk, state.squares, gradients)
        squares, risks = jax.tree.transpose(jax.tree.structure(state.squares), jax.tree.structure((0, 0)), pairs)
        risk = total(jax.tree.leaves(risks), dtype)
        seen = state.seen + present.astype(jnp.int32)
        first = present & (seen <= warmup)
        baseline = state.baseline + jnp.where(first, risk, 0.0)
        moves = present & ~first & (baseline > 0)
        relative = jnp.where(moves, risk * warmup / jnp.where(moves, baseline, 1.0), 0.0)
        change = options.as_scalar(step_size, dtype) * relative
        weights = state.weights * jnp.exp(change - jnp.max(change))
        weights = weights / mean_over(weights, jnp.ones_like(present))
        alpha = weights.astype(signals.losses.dtype)
        return alpha, jnp.zeros((), alpha.dtype), ExcessState(squares, weights, baseline, seen)

    return LossWeights(init, update, frozenset({"gradients"}))


class DbMtlState(NamedTuple):
    """norms float[K]: moving averages of the norms of the gradients of log L; seen int32[K]: updates of each."""

    norms: jax.Array
    seen: jax.Array


def db_mtl(beta: Number = 0.9, beta_sigma: Number = 0.5) -> LossWeights:
    """Dual balancing: logarithms of the losses, their gradients scaled to the norm of the largest (Lin et al. 2023).

    α_k = (1 / L_k) · max_j u_j / u_k, u_k the moving average of ‖∇ log L_k‖: u ← β_t u + (1 − β_t) ‖g_k‖ / L_k,
    β_t = β / t^σ, u = 0 at first. The paper averages the gradients and then takes norms: that is `aggregation.db_mtl`,
    for shared parameters; with β = 0 both are the same. Raises ValueError unless 0 ≤ β < 1 and σ ≥ 0.
    """
    options.check_interval("beta", beta, 0.0, 1.0, "[)")
    options.check_interval("beta_sigma", beta_sigma, 0.0)

    def update(signals: Signals, state: DbMtlState):
        dtype = state.norms.dtype
        losses = jax.lax.stop_gradient(signals.losses).astype(dtype)
        lengths = jax.lax.stop_gradient(gradient_norms(signals, "db_mtl")).astype(dtype)
        used = signals.present & (losses > 0)
        inverse = jnp.where(used, 1.0 / jnp.where(used, losses, 1.0), 0.0)
        seen = state.seen + used.astype(jnp.int32)
        times = jnp.maximum(seen, 1).astype(dtype)
        keep = options.as_scalar(beta, dtype) * times ** -options.as_scalar(beta_sigma, dtype)
        averaged = jnp.where(used, keep * state.norms + (1.0 - keep) * lengths * inverse, state.norms)
        live = used & (averaged > 0)
        largest = jnp.max(jnp.where(live, averaged, 0.0))
        alpha = jnp.where(live, inverse * largest / jnp.where(live, averaged, 1.0), 0.0)
        alpha = alpha.astype(signals.losses.dtype)
        return alpha, jnp.zeros((), alpha.dtype), DbMtlState(averaged, seen)

    return LossWeights(
        lambda count: DbMtlState(jnp.zeros(count), jnp.zeros(count, jnp.int32)),
        update,
        frozenset({"losses", "gradient_norms"}),
    )
