"""Weights α of the losses in Σ_k α_k L_k: pairs (init, update) with their state.

A new method is a function that returns a `LossWeights`, and a line in `LOSS_WEIGHTS`. What a method needs beyond the
losses becomes a further field of `Signals`, None where the training does not provide it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

State = Any


class Signals(NamedTuple):
    """What the training tells at each update. The loss of a task that is not present is not read."""

    losses: jax.Array  # float32[K], means over the labelled examples of each task
    present: jax.Array  # bool[K]


class LossWeights(NamedTuple):
    """init(K) -> state; update(signals, state) -> (α float32[K], extra_loss float32 scalar, state).

    No gradient flows through α. The α of an absent task is finite and multiplies a loss of 0. `extra_loss` is added to
    the objective (0 for all methods that have no term of their own). `needs_losses`: whether α or the state depend on
    the losses, which then have to be those of the whole step before any of its gradients is formed.
    """

    init: Callable[[int], State]
    update: Callable[[Signals, State], tuple[jax.Array, jax.Array, State]]
    needs_losses: bool = False


def equal() -> LossWeights:
    """α_k = 1: the plain sum."""
    return _stateless(lambda signals: jnp.ones_like(signals.losses))


def fixed(weights) -> LossWeights:
    """α as given, float[K], ≥ 0 and not all 0. ValueError otherwise, and at the first update for another length."""
    values = _checked("weights", weights)
    if not np.any(values > 0):
        raise ValueError("weights must not all be 0")
    return _stateless(lambda signals: _per_task("weights", values, signals))


def by_size(sizes, temperature: float = 1.0) -> LossWeights:
    """α_k ∝ n_k^(1/temperature) with mean 1; n_k = number of examples. A high temperature tends to equal weights.

    Raises ValueError for a size or temperature that is not positive.
    """
    sizes = _checked("sizes", sizes)
    if np.any(sizes <= 0) or not temperature > 0:
        raise ValueError(f"sizes and temperature must be > 0, not {sizes.tolist()} and {temperature}")
    powers = (sizes / sizes.max()) ** (1.0 / temperature)
    return _stateless(lambda signals: _per_task("sizes", powers / powers.mean(), signals))


class DwaState(NamedTuple):
    """Losses of the last two updates in which each task was present, newest first [2, K]; their number int32[K]."""

    losses: jax.Array
    seen: jax.Array


def dwa(temperature: float = 2.0) -> LossWeights:
    """Dynamic weight average: α = K softmax(r / temperature), r_k = L_k[t−1] / L_k[t−2] (Liu et al. 2019, equation 7).

    The paper takes a t per epoch, its losses averaged: update as often. r_k = 1 until a task has two losses behind it.
    Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, not {temperature}")

    def init(count: int) -> DwaState:
        return DwaState(jnp.ones((2, count), jnp.float32), jnp.zeros(count, jnp.int32))

    def update(signals: Signals, state: DwaState):
        before = state.losses[1]
        usable = (state.seen >= 2) & (before > 0)
        ratio = jnp.where(usable, state.losses[0] / jnp.where(usable, before, 1.0), 1.0)
        alpha = signals.losses.shape[0] * jax.nn.softmax(ratio / temperature)
        newest = jax.lax.stop_gradient(signals.losses).astype(state.losses.dtype)
        losses = jnp.where(signals.present[None, :], jnp.stack([newest, state.losses[0]]), state.losses)
        alpha = alpha.astype(signals.losses.dtype)
        return alpha, jnp.zeros((), alpha.dtype), DwaState(losses, state.seen + signals.present.astype(jnp.int32))

    return LossWeights(init, update, needs_losses=True)


def gls() -> LossWeights:
    """Geometric loss strategy: the objective is (Π L_k)^(1/n) over the n tasks present (Chennupati et al. 2019).

    α_k = GLS / (n L_k), held constant: Σ α_k L_k has the value and the gradient of the geometric mean. Losses must be >
    0; one of 0, at which the mean has no gradient, is left out.
    """

    def alpha(signals: Signals) -> jax.Array:
        losses = jax.lax.stop_gradient(signals.losses)
        used = signals.present & (losses > 0)
        count = jnp.maximum(jnp.sum(used.astype(losses.dtype)), 1.0)
        safe = jnp.where(used, losses, 1.0)
        mean = jnp.exp(jnp.sum(jnp.log(safe)) / count)
        return jnp.where(used, mean / (count * safe), 0.0)

    return _stateless(alpha)._replace(needs_losses=True)


def rlw(seed: int = 0) -> LossWeights:
    """Random loss weighting: α = softmax of K standard normals, drawn at each update (Lin et al. 2022); sum 1."""

    def update(signals: Signals, key: jax.Array):
        key, drawn = jax.random.split(jax.random.wrap_key_data(key))
        alpha = jax.nn.softmax(jax.random.normal(drawn, signals.losses.shape, signals.losses.dtype))
        return alpha, jnp.zeros((), alpha.dtype), jax.random.key_data(key)

    return LossWeights(lambda count: jax.random.key_data(jax.random.key(seed)), update)


LOSS_WEIGHTS: dict[str, Callable[..., LossWeights]] = {
    "equal": equal,
    "fixed": fixed,
    "by_size": by_size,
    "dwa": dwa,
    "gls": gls,
    "rlw": rlw,
}


def _stateless(alpha: Callable[[Signals], jax.Array]) -> LossWeights:
    def update(signals: Signals, state: tuple):
        weights = jax.lax.stop_gradient(alpha(signals))
        return weights, jnp.zeros((), weights.dtype), state

    return LossWeights(lambda count: (), update)


def _checked(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(f"{name} must be one finite number ≥ 0 for each task, not {values.tolist()}")
    return values


def _per_task(name: str, values: np.ndarray, signals: Signals) -> jax.Array:
    if values.shape != signals.losses.shape:
        raise ValueError(f"{name} has {values.size} numbers for {signals.losses.shape[0]} tasks")
    return jnp.asarray(values, signals.losses.dtype)
