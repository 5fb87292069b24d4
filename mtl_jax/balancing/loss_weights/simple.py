"""Weights that are fixed, follow from the sizes of the data sets, or are random."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing import options
from mtl_jax.balancing.loss_weights.base import LossWeights, Signals, stateless
from mtl_jax.balancing.options import Number, PerTask


def equal() -> LossWeights:
    """α_k = 1: the plain sum."""
    return stateless(lambda signals: jnp.ones_like(signals.losses))


def fixed(weights: PerTask) -> LossWeights:
    """Constant α, float[K], ≥ 0 and not all 0. Raises ValueError otherwise, and at the first update for other K."""
    values = options.task_values("weights", weights)
    if not np.any(values > 0):
        raise ValueError("weights must not all be 0")
    return stateless(lambda signals: options.task_array("weights", values, signals.losses.size, signals.losses.dtype))


def by_size(sizes: PerTask, temperature: Number = 1.0) -> LossWeights:
    """α_k ∝ n_k^(1/temperature) with mean 1; n_k = number of examples. A high temperature tends to equal weights.

    Raises ValueError for a size or temperature that is not positive.
    """
    counts = options.task_values("sizes", sizes)
    if np.any(counts <= 0):
        raise ValueError(f"sizes must be > 0, not {counts.tolist()}")
    options.check_interval("temperature", temperature, 0.0, ends="()")

    def alpha(signals: Signals) -> jax.Array:
        dtype = signals.losses.dtype
        relative = options.task_array("sizes", counts / counts.max(), signals.losses.size, dtype)
        powers = relative ** (1.0 / options.as_scalar(temperature, dtype))
        return powers / jnp.mean(powers)

    return stateless(alpha)


def rlw(seed: int | jax.Array = 0) -> LossWeights:
    """Random loss weighting: α = softmax of K standard normals, drawn at each update (Lin et al. 2022); Σ α = 1."""

    def update(signals: Signals, raw_key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        following, key = jax.random.split(jax.random.wrap_key_data(raw_key))
        alpha = jax.nn.softmax(jax.random.normal(key, signals.losses.shape, signals.losses.dtype))
        return alpha, jnp.zeros((), alpha.dtype), jax.random.key_data(following)

    return LossWeights(lambda count: jax.random.key_data(jax.random.key(seed)), update)
