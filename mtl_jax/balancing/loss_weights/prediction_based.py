"""Weights from what the model predicts, by class, and from its scores on dev."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.loss_weights.base import LossWeights, Signals, require_signal
from mtl_jax.balancing.options import Number


class DivergenceState(NamedTuple):
    """averages float[K] of the divergences; seen int32[K]: number of updates in each."""

    averages: jax.Array
    seen: jax.Array


def kl(decay: Number = 0.9) -> LossWeights:
    """α_k = n D_k / Σ_j D_j over the n tasks, D_k = KL(q_k ‖ p_k) = Σ_c q_kc log(q_kc / p_kc): most weight where the
    distribution of predicted classes, p_k, differs most from that of the labels, q_k.

    D (Kullback & Leibler 1951) is taken over the classes in the batch (`class_divergence`) and averaged over updates
    with `decay`. Several such weightings are in use; this one is proportional to D. Tasks without a divergence get
    α = 1, the others have mean 1. Raises ValueError unless 0 ≤ decay < 1.
    """
    options.check_interval("decay", decay, 0.0, 1.0, "[)")

    def init(count: int) -> DivergenceState:
        return DivergenceState(jnp.zeros(count), jnp.zeros(count, jnp.int32))

    def update(signals: Signals, state: DivergenceState):
        divergences = jax.lax.stop_gradient(require_signal(signals, "divergences", "kl"))
        dtype = state.averages.dtype
        new = signals.present & jnp.isfinite(divergences)
        keep = options.as_scalar(decay, dtype)
        averages = jnp.where(new, keep * state.averages + (1.0 - keep) * divergences.astype(dtype), state.averages)
        seen = state.seen + new.astype(jnp.int32)
        known = seen > 0
        current = jnp.where(known, averages / jnp.where(known, 1.0 - keep ** seen.astype(dtype), 1.0), 0.0)
        total = jnp.sum(current)
        count = jnp.sum(known.astype(dtype))
        proportional = jnp.where(known & (total > 0), count * current / jnp.where(total > 0, total, 1.0), 1.0)
        alpha = jax.lax.stop_gradient(proportional).astype(signals.losses.dtype)
        return alpha, jnp.zeros((), alpha.dtype), DivergenceState(averages, seen)

    return LossWeights(init, update, frozenset({"divergences"}))


def class_divergence(labels: jax.Array, predictions: jax.Array) -> jax.Array:
    """KL(q ‖ p) in nats, a scalar ≥ 0, NaN if a sum is 0: q and p are the two arguments divided by their sums.

    Args:
      labels: how often each class is the label, or the sum of soft labels, float[C].
      predictions: the sum of predicted probabilities over the same examples, float[C]. Both may have been summed over
        devices and micro-batches.
    """
    tiny = jnp.finfo(labels.dtype).tiny
    q, p = labels / jnp.sum(labels), predictions / jnp.sum(predictions)
    logs = jnp.log(jnp.maximum(q, tiny)) - jnp.log(jnp.maximum(p, tiny))
    some = (jnp.sum(labels) > 0) & (jnp.sum(predictions) > 0)
    return jnp.where(some, jnp.maximum(jnp.sum(jnp.where(q > 0, q * logs, 0.0)), 0.0), jnp.nan)


class PriorityState(NamedTuple):
    """averages float[K] of the scores; seen bool[K]: whether there is one."""

    averages: jax.Array
    seen: jax.Array


def dtp(gamma: Number = 1.0, decay: Number = 0.9) -> LossWeights:
    """Dynamic task priority: α_k = −(1 − κ_k)^γ log κ_k, the focal loss of the task's score κ (Guo et al. 2018):
    difficult tasks first.

    κ is the moving average of `Signals.scores`, decay per update, clipped to ≥ 1e-3 (α ≤ 6.9). Tasks without a score
    get α = 1. Raises ValueError unless γ ≥ 0 and 0 ≤ decay < 1.
    """
    options.check_interval("gamma", gamma, 0.0)
    options.check_interval("decay", decay, 0.0, 1.0, "[)")

    def init(count: int) -> PriorityState:
        return PriorityState(jnp.zeros(count), jnp.zeros(count, bool))

    def update(signals: Signals, state: PriorityState):
        scores = jax.lax.stop_gradient(require_signal(signals, "scores", "dtp")).astype(state.averages.dtype)
        dtype = state.averages.dtype
        new = jnp.isfinite(scores)
        keep = jnp.where(state.seen, options.as_scalar(decay, dtype), 0.0)  # the first score is taken as it is
        averages = jnp.where(new, keep * state.averages + (1.0 - keep) * scores, state.averages)
        seen = state.seen | new
        score = jnp.clip(averages, 1e-3, 1.0)
        missing = 1.0 - score
        power = jnp.where(missing > 0, jnp.where(missing > 0, missing, 1.0) ** options.as_scalar(gamma, dtype), 0.0)
        alpha = jnp.where(seen, -power * jnp.log(score), 1.0)
        alpha = jax.lax.stop_gradient(alpha).astype(signals.losses.dtype)
        return alpha, jnp.zeros((), alpha.dtype), PriorityState(averages, seen)

    return LossWeights(init, update, frozenset({"scores"}))
