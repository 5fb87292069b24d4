"""Weights from the losses of this step and earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.loss_weights.base import LossWeights, Signals, State, stateless
from mtl_jax.balancing.options import Number, PerTask


class DwaState(NamedTuple):
    """Losses of the last two updates in which each task was present, newest first [2, K]; their number int32[K]."""

    losses: jax.Array
    seen: jax.Array


def dwa(temperature: Number = 2.0) -> LossWeights:
    """Dynamic weight average: α = K softmax(r / temperature), r_k = L_k[t−1] / L_k[t−2] (Liu et al. 2019, equation 7).

    In the paper t counts epochs, with mean losses: update as often. r_k = 1 until a task has had two losses.
    Raises ValueError for a temperature that is not positive.
    """
    options.check_interval("temperature", temperature, 0.0, ends="()")

    def init(count: int) -> DwaState:
        return DwaState(jnp.ones((2, count)), jnp.zeros(count, jnp.int32))

    def update(signals: Signals, state: DwaState):
        dtype = state.losses.dtype
        before = state.losses[1]
        usable = (state.seen >= 2) & (before > 0)
        ratio = jnp.where(usable, state.losses[0] / jnp.where(usable, before, 1.0), 1.0)
        alpha = signals.losses.size * jax.nn.softmax(ratio / options.as_scalar(temperature, dtype))
        newest = jax.lax.stop_gradient(signals.losses).astype(dtype)
        losses = jnp.where(signals.present[None, :], jnp.stack([newest, state.losses[0]]), state.losses)
        alpha = jax.lax.stop_gradient(alpha).astype(signals.losses.dtype)
        return alpha, jnp.zeros((), alpha.dtype), DwaState(losses, state.seen + signals.present.astype(jnp.int32))

    return LossWeights(init, update, frozenset({"losses"}))


def gls() -> LossWeights:
    """Geometric loss strategy: the objective is (Π L_k)^(1/n) over the n tasks present (Chennupati et al. 2019).

    α_k = GLS / (n L_k), held constant: Σ α_k L_k has the value and the gradient of the geometric mean. Losses must be >
    0; a loss of 0, at which the mean has no gradient, is left out.
    """

    def alpha(signals: Signals) -> jax.Array:
        losses = jax.lax.stop_gradient(signals.losses)
        used = signals.present & (losses > 0)
        count = jnp.maximum(jnp.sum(used.astype(losses.dtype)), 1.0)
        safe = jnp.where(used, losses, 1.0)
        mean = jnp.exp(jnp.sum(jnp.log(safe)) / count)
        return jnp.where(used, mean / (count * safe), 0.0)

    return stateless(alpha, "losses")


def stch(mu: Number = 1.0, preference: PerTask | None = None, ideal: PerTask | None = None) -> LossWeights:
    """Smooth Tchebycheff: the objective is μ log Σ exp(p_k (L_k − z_k) / μ) over the tasks present (Lin et al. 2024).
    μ → 0 is the largest p_k (L_k − z_k).

    p = `preference` [K], by default 1; z = `ideal` [K], the losses to reach, by default 0. The value of the objective
    is Σ α_k L_k + extra_loss. Raises ValueError unless μ > 0.
    """
    options.check_interval("mu", mu, 0.0, ends="()")
    preferred = options.preference_vector(preference)
    lowest_losses = None if ideal is None else options.task_values("ideal", ideal)

    def update(signals: Signals, state: State) -> tuple[jax.Array, jax.Array, State]:
        losses, present = jax.lax.stop_gradient(signals.losses), signals.present
        count, dtype = losses.size, losses.dtype
        smooth = options.as_scalar(mu, dtype)
        p, z = jnp.ones(count, dtype), jnp.zeros(count, dtype)
        if preferred is not None:
            p = options.task_array("preference", preferred, count, dtype)
        if lowest_losses is not None:
            z = options.task_array("ideal", lowest_losses, count, dtype)
        distance = jnp.where(present, p * (losses - z), -jnp.inf)
        largest = jnp.max(distance)
        largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
        powers = jnp.exp((distance - largest) / smooth)
        total = jnp.maximum(jnp.sum(powers), jnp.finfo(dtype).tiny)
        alpha = p * powers / total
        value = jnp.where(jnp.any(present), largest + smooth * jnp.log(total), 0.0)
        sum_of_weighted = jnp.sum(alpha * jnp.where(present, losses, 0.0))
        alpha, extra = jax.lax.stop_gradient((alpha, value - sum_of_weighted))
        return alpha, extra, state

    return LossWeights(lambda count: (), update, frozenset({"losses"}))
