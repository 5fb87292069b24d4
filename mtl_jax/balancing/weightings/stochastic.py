"""Weights that learn over the steps against the noise of mini-batches: MoDo, SDMGrad, and CR-MOGM around any method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.interior_point import project_on_simplex
from mtl_jax.balancing.options import Number, PerTask
from mtl_jax.balancing.weightings.base import (
    State,
    Weighting,
    dot,
    mask_absent,
    normalised_preference,
    require_task_count,
)


def modo(gamma: Number = 1e-3, rho: Number = 0.1) -> Weighting:
    """Multi-objective descent with double sampling: λ ← Π(λ − γ (G λ + ρ λ)) (Chen et al. 2023, algorithm 1).

    G holds the products between two independent halves of the batch (`Weighting.halves`), so that G λ is an unbiased
    estimate; Π projects on the simplex. The state is λ [K], uniform at first. ρ is from the authors' code; it is 0 in
    the paper. Raises ValueError unless γ > 0 and ρ ≥ 0.
    """
    options.check_interval("gamma", gamma, 0.0, ends="()")
    options.check_interval("rho", rho, 0.0)

    def step(products: jax.Array, weights: jax.Array, present: jax.Array, mass: jax.Array) -> jax.Array:
        rate, ridge = options.as_scalar(gamma, weights.dtype), options.as_scalar(rho, weights.dtype)
        return project_on_simplex(weights - rate * (dot(products, weights) + ridge * weights), present, mass)

    def update(products: jax.Array, state: jax.Array, *, key: jax.Array, present: jax.Array):
        new = step_on_simplex(step, mask_absent(products, present), state, present)
        return normalise_present(new, present), new.astype(state.dtype)

    return Weighting(lambda count: uniform_weights("modo", count), update, halves=True)


def sdmgrad(
    lam: Number = 0.3,
    learning_rate: Number = 10.0,
    momentum: Number = 0.5,
    steps: int = 20,
    preference: PerTask | None = None,
) -> Weighting:
    """Stochastic direction-oriented descent: weights (w + λ p) / (1 + λ), w against conflicts, p the target direction
    (Xiao et al. 2023, algorithm 1).

    w, the state, takes `steps` projected gradient steps with momentum on ½‖g_w + λ g_p‖² over the simplex. Its gradient
    G (w + λ p) is unbiased: G holds products between independent halves of the batch (`Weighting.halves`). As in the
    authors' code, the source of the defaults, G is divided by (mean_k √G_kk)². p = `preference` [K], by default equal.
    Raises ValueError for options out of range.
    """
    options.check_interval("lam", lam, 0.0)
    options.check_interval("learning_rate", learning_rate, 0.0, ends="()")
    options.check_interval("momentum", momentum, 0.0, 1.0, "[)")
    options.check_integer("steps", steps, 1)
    preferred = options.preference_vector(preference)

    def update(products: jax.Array, state: jax.Array, *, key: jax.Array, present: jax.Array):
        products = mask_absent(products, present)
        dtype = products.dtype
        pull, rate, memory = (options.as_scalar(option, dtype) for option in (lam, learning_rate, momentum))
        target = normalised_preference(products, present, preferred)
        count = jnp.maximum(jnp.sum(present.astype(dtype)), 1.0)
        scale = jnp.sum(jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))) / count
        relative = jax.lax.stop_gradient(products / (scale**2 + 1e-8))

        def step(relative: jax.Array, weights: jax.Array, present: jax.Array, mass: jax.Array) -> jax.Array:
            def inner(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                w, velocity = carry
                velocity = memory * velocity + dot(relative, w + pull * mass * target)
                return project_on_simplex(w - rate * velocity, present, mass), velocity

            return jax.lax.fori_loop(0, steps, inner, (weights, jnp.zeros_like(weights)))[0]

        new = step_on_simplex(step, relative, state, present)
        return (normalise_present(new, present) + pull * target) / (1.0 + pull), new.astype(state.dtype)

    return Weighting(lambda count: uniform_weights("sdmgrad", count), update, halves=True)


class SmoothedState(NamedTuple):
    """weights float[K]: the averages; weighting: state of the smoothed method."""

    weights: jax.Array
    weighting: State


def cr_mogm(weighting: Weighting, alpha: Number = 0.9) -> Weighting:
    """Weights averaged over the steps: λ ← α λ + (1 − α) λ̂, λ̂ those of `weighting`, λ = 1/K at first (Zhou et al.
    2022, CR-MOGM). The paper lets α grow to 1 as the learning rate falls; a traced α can do so. Raises ValueError
    unless 0 ≤ α ≤ 1.
    """
    options.check_interval("alpha", alpha, 0.0, 1.0)

    def init(count: int | None) -> SmoothedState:
        return SmoothedState(uniform_weights("cr_mogm", count), weighting.init(count))

    def update(gram: jax.Array, state: SmoothedState, *, key: jax.Array, present: jax.Array):
        weights, inner = weighting.update(gram, state.weighting, key=key, present=present)
        keep = options.as_scalar(alpha, weights.dtype)
        before = state.weights.astype(weights.dtype)
        averages = jnp.where(present, keep * before + (1.0 - keep) * weights, before)
        new = jax.lax.stop_gradient(averages).astype(state.weights.dtype)
        return jnp.where(present, averages, 0.0), SmoothedState(new, inner)

    return Weighting(init, update, weighting.halves)


def uniform_weights(name: str, count: int | None) -> jax.Array:
    """The centre of the simplex, float[K]."""
    tasks = require_task_count(name, count)
    return jnp.full(tasks, 1.0 / tasks)


def step_on_simplex(
    step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    products: jax.Array,
    state: jax.Array,
    present: jax.Array,
) -> jax.Array:
    """λ [K] after `step` (products, λ, present, mass) on the tasks present, whose total weight stays the same."""
    before = state.astype(products.dtype)
    of_present = jnp.where(present, before, 0.0)
    return jnp.where(present, step(products, of_present, present, jnp.sum(of_present)), before)


def normalise_present(weights: jax.Array, present: jax.Array) -> jax.Array:
    """λ over the tasks present, normalised to sum 1; equal if it is zero."""
    of_present = jnp.where(present, weights, 0.0)
    total = jnp.sum(of_present)
    return jnp.where(total > 0, of_present / jnp.where(total > 0, total, 1.0), normalised_preference(weights, present))
