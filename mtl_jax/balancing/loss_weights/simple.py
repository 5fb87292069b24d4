"""Weights that are given, follow from the sizes of the data sets, or are drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing import options
from mtl_jax.balancing.loss_weights.base import LossWeights, Signals, stateless
from mtl_jax.balancing.options import Number


def equal() -> LossWeights:
    """α_k = 1: the plain sum."""
    return stateless(lambda signals: jnp.ones_like(signals.losses))


def fixed(weights) -> LossWeights:
    """α as given, float[K], ≥ 0 and not all 0. ValueError otherwise, and at the first update for another length."""
    values = options.task_values("weights", weights)
    if not np.any(values > 0):
        raise ValueError("weights must not all be 0")
    return stateless(lambda signals: options.task_array("weights", values, signals.losses.size, signals.losses.dtype))


def by_size(sizes, temperature: Number = 1.0) -> LossWeights:
    """α_k ∝ n_k^(1/temperature) with mean 1; n_k = number of examples. A high temperature tends to equal weights.

    Raises ValueError for a size or temperature that is not positive.
    """
    sizes = options.task_values("sizes", sizes)
    if np.any(sizes <= 0):
        raise ValueError(f"sizes must be > 0, not {sizes.tolist()}")
    options.check_interval("temperature", temperature, 0.0, ends="()")

    def alpha(signals: Signals) -> jax.Array:
        dtype = signals.losses.dtype
        relative = options.task_array("sizes", sizes / sizes.max(), signals.losses.size, dtype)
        powers = relative ** (1.0 / options.as_scalar(temperature, dtype))
        return powers / jnp.mean(powers)

    return stateless(alpha)


def rlw(seed: int | jax.Array = 0) -> LossWeights:
    """Random loss weighting: α = softmax of K standard normals, drawn at each update (Lin et al. 2022); sum 1."""

    def update(signals: Signals, key: jax.Array):
        key, drawn = jax.random.split(jax.random.wrap_key_data(key))
        alpha = jax.nn.softmax(jax.random.normal(drawn, signals.losses.shape, signals.losses.dtype))
        return alpha, jnp.zeros((), alpha.dtype), jax.random.key_data(key)

    return LossWeights(lambda count: jax.random.key_data(jax.random.key(seed)), update)
