"""Weights that are learned together with the model, by gradient steps of their own: their parameters are the state.

In the papers the optimizer of the model learns them. Here each method takes the derivative of its objective in closed
form and one step of Adam with its own learning rate, independent of the optimizer and its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing import options
from mtl_jax.balancing.loss_weights.base import LossWeights, Signals, State, gradient_norms, mean_over, require_signal
from mtl_jax.balancing.options import Number

LARGEST = 15.0  # bound of |s| of learned logarithms, which a loss of 0 would make infinite


class LearnedState(NamedTuple):
    """values float[K], the parameters; first, second float[K]: Adam's moments; seen int32[K]: steps of each task."""

    values: jax.Array
    first: jax.Array
    second: jax.Array
    seen: jax.Array


def uncertainty(learning_rate: Number = 2.5e-3, regression: Sequence[bool] | None = None) -> LossWeights:
    """Homoscedastic uncertainty: the objective is Σ h_k exp(−s_k) L_k + ½ s_k, s_k = log σ_k² learned (Kendall et al.
    2018, equation 10).

    h_k = ½ for the tasks whose loss is a squared error, `regression` [K] (bools), and 1 for others; by default 1 for
    all. α_k = h_k exp(−s_k), extra_loss = Σ ½ s_k over the tasks present; at the optimum α_k L_k = ½. s starts at 0 and
    stays within ±15. The learning rate is the paper's. Raises ValueError unless it is > 0.
    """
    options.check_interval("learning_rate", learning_rate, 0.0, ends="()")
    halved = None if regression is None else np.where(np.asarray(regression, bool), 0.5, 1.0)

    def update(signals: Signals, state: LearnedState):
        s = state.values
        factor = jnp.ones_like(s) if halved is None else options.task_array("regression", halved, s.size, s.dtype)
        alpha = factor * jnp.exp(-s)
        slope = 0.5 - alpha * _constant(signals.losses, s.dtype)
        extra = 0.5 * jnp.sum(jnp.where(signals.present, s, 0.0))
        return _result(signals, alpha, extra, _clipped(adam_step(state, slope, learning_rate, signals.present)))

    return LossWeights(_zeros, update, frozenset({"losses"}))


def imtl_l(learning_rate: Number = 2.5e-3) -> LossWeights:
    """The objective is Σ exp(s_k) L_k − s_k, s_k learned (Liu et al. 2021, IMTL-L); at the optimum exp(s_k) L_k = 1.

    α_k = exp(s_k), extra_loss = −Σ s_k over the tasks present; s starts at 0 and stays within ±15. The paper learns s
    with the learning rate of its model. Raises ValueError unless it is > 0.
    """
    options.check_interval("learning_rate", learning_rate, 0.0, ends="()")

    def update(signals: Signals, state: LearnedState):
        s = state.values
        alpha = jnp.exp(s)
        slope = alpha * _constant(signals.losses, s.dtype) - 1.0
        extra = -jnp.sum(jnp.where(signals.present, s, 0.0))
        return _result(signals, alpha, extra, _clipped(adam_step(state, slope, learning_rate, signals.present)))

    return LossWeights(_zeros, update, frozenset({"losses"}))


class GradNormState(NamedTuple):
    """learned: the weights, sum K; first float[K]: first loss of each task; seen bool[K]: whether there is one."""

    learned: LearnedState
    first: jax.Array
    seen: jax.Array


def gradnorm(alpha: Number = 1.5, learning_rate: Number = 0.025) -> LossWeights:
    """Gradient normalisation: weights w are learned on Σ_k |w_k ‖g_k‖ − G r_k^α|, G the mean of the w_k ‖g_k‖ (held
    constant), r_k = relative inverse training rate (L_k / L_k(0)) / mean_j (L_j / L_j(0)) (Chen et al. 2018, algorithm
    1).

    L(0) is a task's first loss. After each step w is clipped to ≥ 1e-3 and scaled to sum K. Raises ValueError unless α
    ≥ 0 and the learning rate is > 0.
    """
    options.check_interval("alpha", alpha, 0.0)
    options.check_interval("learning_rate", learning_rate, 0.0, ends="()")

    def init(count: int) -> GradNormState:
        start = _zeros(count)
        return GradNormState(start._replace(values=jnp.ones(count)), jnp.ones(count), jnp.zeros(count, bool))

    def update(signals: Signals, state: GradNormState):
        w, present = state.learned.values, signals.present
        dtype = w.dtype
        losses = _constant(signals.losses, dtype)
        lengths = _constant(gradient_norms(signals, "gradnorm"), dtype)
        first = jnp.where(present & ~state.seen & (losses > 0), losses, state.first)
        seen = state.seen | (present & (losses > 0))
        used = present & seen
        ratio = jnp.where(used, losses / first, 0.0)
        average = mean_over(ratio, used)
        rate = jnp.where(average > 0, ratio / jnp.where(average > 0, average, 1.0), 1.0)
        powered = jnp.where(rate > 0, jnp.where(rate > 0, rate, 1.0) ** options.as_scalar(alpha, dtype), 0.0)
        weighted = w * lengths
        goal = mean_over(weighted, used) * powered
        slope = jnp.sign(weighted - goal) * lengths
        moved = adam_step(state.learned, slope, learning_rate, used)
        new = jnp.maximum(moved.values, 1e-3)
        new = new * (new.size / jnp.sum(new))
        return _result(signals, w, jnp.zeros((), dtype), GradNormState(moved._replace(values=new), first, seen))

    return LossWeights(init, update, frozenset({"losses", "gradient_norms"}))


class FamoState(NamedTuple):
    """learned: the logits ξ; logs float[K]: logarithms of the losses of the last update; pending bool[K]: which tasks
    had one.
    """

    learned: LearnedState
    logs: jax.Array
    pending: jax.Array


def famo(learning_rate: Number = 0.025, decay: Number = 1e-3, lowest: Number = 0.0) -> LossWeights:
    """Fast adaptive multitask optimization: the logarithms of all losses shall fall at the same rate (Liu et al. 2023,
    algorithm 1).

    α_k ∝ z_k / (L_k − lowest), z = softmax(ξ), Σ α = 1. ξ follows ∇_ξ Σ z_k δ_k + decay · ξ, where δ_k is the decrease
    of log(L_k − lowest) in the last step, measured on the batch of that step (`Signals.losses_after`). Adam and its
    options are those of the authors' code. Raises ValueError unless learning rate > 0
    and decay ≥ 0.
    """
    options.check_interval("learning_rate", learning_rate, 0.0, ends="()")
    options.check_interval("decay", decay, 0.0)

    def init(count: int) -> FamoState:
        return FamoState(_zeros(count), jnp.zeros(count), jnp.zeros(count, bool))

    def update(signals: Signals, state: FamoState):
        dtype = state.logs.dtype
        least = options.as_scalar(lowest, dtype)

        def above(losses: jax.Array) -> jax.Array:
            return jnp.maximum(_constant(losses, dtype) - least, 0.0) + 1e-8

        decrease = state.logs - jnp.log(above(require_signal(signals, "losses_after", "famo")))
        known = state.pending & jnp.isfinite(decrease)
        decrease = jnp.where(known, decrease, 0.0)
        z = _softmax(state.learned.values, known)
        slope = z * (decrease - jnp.sum(z * decrease)) + options.as_scalar(decay, dtype) * state.learned.values
        learned = adam_step(state.learned, slope, learning_rate, known)
        gaps = above(signals.losses)
        raw = jnp.where(signals.present, _softmax(learned.values, signals.present) / gaps, 0.0)
        total = jnp.sum(raw)
        alpha = raw / jnp.where(total > 0, total, 1.0)
        return _result(signals, alpha, jnp.zeros((), dtype), FamoState(learned, jnp.log(gaps), signals.present))

    return LossWeights(init, update, frozenset({"losses", "losses_after"}))


def adam_step(state: LearnedState, slope: jax.Array, learning_rate: Number, used: jax.Array) -> LearnedState:
    """One step of Adam (β 0.9 and 0.999, eps 1e-8) for the tasks used (bool[K]); values and moments of other tasks
    stay."""
    slope = jnp.clip(slope, -1e15, 1e15)  # its square has to fit into float32
    first = 0.9 * state.first + 0.1 * slope
    second = 0.999 * state.second + 0.001 * slope**2
    seen = state.seen + 1
    times = seen.astype(slope.dtype)
    # 1 − β^t without cancellation
    first_bias, second_bias = -jnp.expm1(math.log(0.9) * times), -jnp.expm1(math.log(0.999) * times)
    root = jnp.sqrt(second / second_bias) + 1e-8
    values = state.values - options.as_scalar(learning_rate, slope.dtype) * (first / first_bias) / root
    return jax.tree.map(lambda new, old: jnp.where(used, new, old), LearnedState(values, first, second, seen), state)


def _zeros(count: int) -> LearnedState:
    return LearnedState(jnp.zeros(count), jnp.zeros(count), jnp.zeros(count), jnp.zeros(count, jnp.int32))


def _clipped(state: LearnedState) -> LearnedState:
    return state._replace(values=jnp.clip(state.values, -LARGEST, LARGEST))


def _constant(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jax.lax.stop_gradient(values).astype(dtype)


def _softmax(logits: jax.Array, used: jax.Array) -> jax.Array:
    """Over the tasks used; 0 for others, and for all if none is used."""
    largest = jnp.max(jnp.where(used, logits, -jnp.inf))
    powers = jnp.where(used, jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0)), 0.0)
    total = jnp.sum(powers)
    return powers / jnp.where(total > 0, total, 1.0)


def _result(signals: Signals, alpha: jax.Array, extra: jax.Array, state: State) -> tuple[jax.Array, jax.Array, State]:
    """What `LossWeights.update` returns: in the dtype of the losses, constant to derivatives."""
    dtype = signals.losses.dtype
    return alpha.astype(dtype), extra.astype(dtype), jax.tree.map(jax.lax.stop_gradient, state)
