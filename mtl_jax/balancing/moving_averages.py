"""Combinations of moving averages of the gradients, as optax transformations: MoCo and DB-MTL (K copies)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.gradient_combination import (
    Transform,
    combine,
    cross_gram,
    mean_of_halves,
    transformation,
    zero_unused,
)
from mtl_jax.balancing.interior_point import project_on_simplex
from mtl_jax.balancing.options import Number
from mtl_jax.balancing.weightings.base import dot, mask_absent, require_task_count, safe_divide, safe_sqrt
from mtl_jax.balancing.weightings.stochastic import normalise_present, step_on_simplex, uniform_weights
from mtl_jax.sharing.gram import Tree, accumulation_dtype, gram


class TrackingState(NamedTuple):
    """gradients: moving averages, leaves [K, ...], float32 or wider; seen int32[K]: number of updates of each."""

    gradients: Tree
    seen: jax.Array


class MocoState(NamedTuple):
    """gradients, seen as in `TrackingState`; weights float[K]: λ."""

    gradients: Tree
    seen: jax.Array
    weights: jax.Array


def moco(
    beta: Number = 0.5,
    *,
    beta_sigma: Number = 0.5,
    gamma: Number = 0.1,
    gamma_sigma: Number = 0.5,
    rho: Number = 0.0,
    halves: bool = False,
    tasks: int | None = None,
) -> Transform:
    """Multi-objective gradient correction (Fernando et al. 2023, algorithm 1): the gradients are tracked, y ← y − β_t
    (y − g), the weights follow λ ← Π(λ − γ_t (yᵀy + ρI) λ) on the simplex, and the update is Σ λ_k y_k.

    β_t = β / t^σ, γ_t likewise; y is 0 at first. t counts the updates in which a task was present; γ_t takes the
    largest. With `halves` updates have leaves [2, K, ...] and each half is tracked separately, so that noise in y does
    not bias their product; the paper has one y. The authors' code normalises the gradients first.

    Raises ValueError for options out of range, and at init without `tasks` = K.
    """
    options.check_interval("beta", beta, 0.0, 1.0, "(]")
    options.check_interval("gamma", gamma, 0.0, ends="()")
    for name, value in (("beta_sigma", beta_sigma), ("gamma_sigma", gamma_sigma), ("rho", rho)):
        options.check_interval(name, value, 0.0)

    def init(params: Tree) -> MocoState:
        count = require_task_count("moco", tasks)
        lead = (2, count) if halves else (count,)
        return MocoState(_zeros(params, lead), jnp.zeros(count, jnp.int32), uniform_weights("moco", count))

    def update(
        updates: Tree, state: MocoState, params: Tree = None, *, present: jax.Array | None = None, **extra: Any
    ) -> tuple[Tree, MocoState]:
        present = jnp.ones(state.seen.size, bool) if present is None else present
        seen = state.seen + present.astype(jnp.int32)
        rate = _falling(beta, seen, beta_sigma)
        axis = 1 if halves else 0
        tracked = jax.tree.map(lambda y, g: _towards(y, g, rate, present, axis), state.gradients, updates)
        products = mask_absent(cross_gram(tracked) if halves else gram(tracked), present)
        weight_rate = _falling(gamma, jnp.max(seen), gamma_sigma).astype(products.dtype)
        ridge = options.as_scalar(rho, products.dtype)

        def step(products: jax.Array, weights: jax.Array, present: jax.Array, mass: jax.Array) -> jax.Array:
            return project_on_simplex(weights - weight_rate * (dot(products, weights) + ridge * weights), present, mass)

        weights = step_on_simplex(step, products, state.weights, present)
        gradients = mean_of_halves(tracked) if halves else tracked
        combined = combine(normalise_present(weights, present), gradients)
        combined = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), combined, updates)
        return combined, MocoState(tracked, seen, weights.astype(state.weights.dtype))

    return transformation(init, update)


def db_mtl(beta: Number = 0.9, beta_sigma: Number = 0.5, tasks: int | None = None) -> Transform:
    """Dual balancing (Lin et al. 2023): gradients of the logarithms of the losses are tracked by moving averages y and
    scaled to the norm of the largest: the update is max_j ‖y_j‖ · Σ_k y_k / ‖y_k‖.

    y ← β_t y + (1 − β_t) g, β_t = β / t^σ, t the updates in which the task was present, y 0 at first. `update(...,
    losses=float[K])` divides the gradients by the losses, which makes them those of the logarithms; without it they
    have to be divided already. `loss_weights.db_mtl` is the same for all parameters, without tracked gradients.

    Raises ValueError for options out of range, and at init without `tasks` = K.
    """
    options.check_interval("beta", beta, 0.0, 1.0, "[)")
    options.check_interval("beta_sigma", beta_sigma, 0.0)

    def init(params: Tree) -> TrackingState:
        count = require_task_count("db_mtl", tasks)
        return TrackingState(_zeros(params, (count,)), jnp.zeros(count, jnp.int32))

    def update(
        updates: Tree,
        state: TrackingState,
        params: Tree = None,
        *,
        present: jax.Array | None = None,
        losses: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, TrackingState]:
        present = jnp.ones(state.seen.size, bool) if present is None else present
        seen = state.seen + present.astype(jnp.int32)
        rate = 1.0 - _falling(beta, seen, beta_sigma)
        factor = (
            jnp.ones_like(rate) if losses is None else safe_divide(jnp.ones_like(losses), losses).astype(rate.dtype)
        )

        def track(y: jax.Array, g: jax.Array) -> jax.Array:
            factors = factor.astype(y.dtype).reshape((-1, *(1,) * (g.ndim - 1)))
            return _towards(y, zero_unused(present, g).astype(y.dtype) * factors, rate, present, 0)

        tracked = jax.tree.map(track, state.gradients, updates)
        norms = jnp.where(present, safe_sqrt(jnp.diagonal(gram(tracked))), 0.0)
        combined = combine(safe_divide(jnp.max(norms), norms), tracked)
        combined = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), combined, updates)
        return combined, TrackingState(tracked, seen)

    return transformation(init, update)


def _zeros(params: Tree, lead: tuple[int, ...]) -> Tree:
    """Zeros with the leading axes `lead` before those of each leaf."""
    return jax.tree.map(lambda leaf: jnp.zeros((*lead, *leaf.shape), accumulation_dtype(leaf)), params)


def _falling(rate: Number, seen: jax.Array, sigma: Number) -> jax.Array:
    """rate / t^σ with t = max(seen, 1)."""
    dtype = jnp.zeros(()).dtype
    times = jnp.maximum(seen, 1).astype(dtype)
    return options.as_scalar(rate, dtype) * times ** -options.as_scalar(sigma, dtype)


def _towards(y: jax.Array, g: jax.Array, rate: jax.Array, present: jax.Array, axis: int) -> jax.Array:
    """y + rate · (g − y) for the tasks present, along `axis`."""
    shape = (*(1,) * axis, -1, *(1,) * (y.ndim - axis - 1))
    moved = y + rate.astype(y.dtype).reshape(shape) * (g.astype(y.dtype) - y)
    return jnp.where(present.reshape(shape), moved, y)
