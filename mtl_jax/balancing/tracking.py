"""Combinations of moving averages of the gradients, as optax transformations: MoCo and DB-MTL. They keep K copies."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.balancing import options
from mtl_jax.balancing.combination import combine, cross_gram, mean_of_halves, zero_unused
from mtl_jax.balancing.interior_point import project_on_simplex
from mtl_jax.balancing.options import Number
from mtl_jax.balancing.weightings.base import dot, mask_absent, require_task_count, safe_divide, safe_sqrt
from mtl_jax.balancing.weightings.stochastic import normalise_present, step_on_simplex, uniform_weights
from mtl_jax.sharing.gram import accumulation_dtype, gram


class TrackingState(NamedTuple):
    """gradients: moving averages, leaves [K, ...], float32 or wider; seen int32[K]: updates of each task's; weights
    float[K]: λ (MoCo; empty in DB-MTL).
    """

    gradients: Any
    seen: jax.Array
    weights: Any


def moco(
    beta: Number = 0.5,
    beta_sigma: Number = 0.5,
    gamma: Number = 0.1,
    gamma_sigma: Number = 0.5,
    rho: Number = 0.0,
    halves: bool = False,
    tasks: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multi-objective gradient correction (Fernando et al. 2023, algorithm 1): the gradients are tracked, y ← y − β_t
    (y − g), the weights follow λ ← Π(λ − γ_t (yᵀy + ρI) λ) on the simplex, and Σ λ_k y_k leaves.

    β_t = β / t^σ, γ_t likewise; y is 0 at first. t counts the updates in which a task was present; γ_t takes the
    largest. With `halves` updates have leaves [2, K, ...] and the halves are tracked each for itself, so that their
    product stands free of what noise is left in y; the paper has one y. The authors' code normalises gradients before.

    Raises ValueError for options out of range, and at init without `tasks`, which is K.
    """
    options.check_interval("beta", beta, 0.0, 1.0, "(]")
    options.check_interval("gamma", gamma, 0.0, ends="()")
    for name, value in (("beta_sigma", beta_sigma), ("gamma_sigma", gamma_sigma), ("rho", rho)):
        options.check_interval(name, value, 0.0)

    def init(params) -> TrackingState:
        count = require_task_count("moco", tasks)
        lead = (2, count) if halves else (count,)
        return TrackingState(_zeros(params, lead), jnp.zeros(count, jnp.int32), uniform_weights("moco", count))

    def update(updates, state: TrackingState, params=None, *, present: jax.Array | None = None, **extra):
        present = jnp.ones(state.seen.size, bool) if present is None else present
        seen = state.seen + present.astype(jnp.int32)
        rate = _falling(beta, seen, beta_sigma)
        axis = 1 if halves else 0
        tracked = jax.tree.map(lambda y, g: _towards(y, g, rate, present, axis), state.gradients, updates)
        products = mask_absent(cross_gram(tracked) if halves else gram(tracked), present)
        weight_rate = _falling(gamma, jnp.max(seen), gamma_sigma).astype(products.dtype)
        ridge = options.as_scalar(rho, products.dtype)

        def step(products, part, present, mass):
            return project_on_simplex(part - weight_rate * (dot(products, part) + ridge * part), present, mass)

        moved = step_on_simplex(step, products, state.weights, present)
        joined = mean_of_halves(tracked) if halves else tracked
        combined = combine(normalise_present(moved, present), joined)
        one = jax.tree.map(lambda leaf: leaf[0, 0] if halves else leaf[0], updates)
        combined = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), combined, one)
        return combined, TrackingState(tracked, seen, moved.astype(state.weights.dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def db_mtl(
    beta: Number = 0.9, beta_sigma: Number = 0.5, tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Dual balancing (Lin et al. 2023): gradients of the logarithms of the losses, tracked by moving averages y and all
    scaled to the norm of the largest: max_j ‖y_j‖ · Σ_k y_k / ‖y_k‖ leaves.

    y ← β_t y + (1 − β_t) g, β_t = β / t^σ, t the updates in which the task was present, y 0 at first. `update(...,
    losses=float[K])` divides the gradients by the losses, which makes them those of the logarithms; without it they
    have to be so already. `loss_weights.db_mtl` is the same for all parameters, not tracked.

    Raises ValueError for options out of range, and at init without `tasks`, which is K.
    """
    options.check_interval("beta", beta, 0.0, 1.0, "[)")
    options.check_interval("beta_sigma", beta_sigma, 0.0)

    def init(params) -> TrackingState:
        count = require_task_count("db_mtl", tasks)
        return TrackingState(_zeros(params, (count,)), jnp.zeros(count, jnp.int32), ())

    def update(updates, state: TrackingState, params=None, *, present=None, losses=None, **extra):
        present = jnp.ones(state.seen.size, bool) if present is None else present
        seen = state.seen + present.astype(jnp.int32)
        rate = 1.0 - _falling(beta, seen, beta_sigma)
        factor = (
            jnp.ones_like(rate) if losses is None else safe_divide(jnp.ones_like(losses), losses).astype(rate.dtype)
        )

        def track(y, g):
            share = factor.astype(y.dtype).reshape((-1, *(1,) * (g.ndim - 1)))
            return _towards(y, zero_unused(present, g).astype(y.dtype) * share, rate, present, 0)

        tracked = jax.tree.map(track, state.gradients, updates)
        norms = jnp.where(present, safe_sqrt(jnp.diagonal(gram(tracked))), 0.0)
        combined = combine(safe_divide(jnp.max(norms), norms), tracked)
        combined = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), combined, updates)
        return combined, TrackingState(tracked, seen, ())

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros(params: Any, lead: tuple[int, ...]) -> Any:
    def of_leaf(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((*lead, *leaf.shape), accumulation_dtype(leaf))

    return jax.tree.map(of_leaf, params)


def _falling(rate: Number, seen: jax.Array, sigma: Number) -> jax.Array:
    """rate / t^σ, t = seen, at least 1."""
    dtype = jnp.zeros(()).dtype
    times = jnp.maximum(seen, 1).astype(dtype)
    return options.as_scalar(rate, dtype) * times ** -options.as_scalar(sigma, dtype)


def _towards(y: jax.Array, g: jax.Array, rate: jax.Array, present: jax.Array, axis: int) -> jax.Array:
    """y + rate · (g − y) for the tasks present, along `axis`."""
    shape = (*(1,) * axis, -1, *(1,) * (y.ndim - axis - 1))
    moved = y + rate.astype(y.dtype).reshape(shape) * (g.astype(y.dtype) - y)
    return jnp.where(present.reshape(shape), moved, y)
