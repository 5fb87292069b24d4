"""The gradient of the losses that mixers and heads add, by themselves."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients.base import StepInputs
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import with_leaves


class AuxiliaryStep(NamedTuple):
    """losses {name: float32 scalar}; extra, their sum with their factors; gradient of that sum, {path: leaf}."""

    losses: dict[str, jax.Array]
    extra: jax.Array
    gradient: FlatParams


def auxiliary_step(inputs: StepInputs) -> AuxiliaryStep:
    """The auxiliary losses of a step at its parameters, over all micro-batches and devices."""
    objective, hyper, names = inputs.objective, inputs.hyper, inputs.objective.auxiliary
    factors = jnp.stack([hyper.auxiliary[name] for name in names])
    counts = jax.vmap(lambda micro: terms.auxiliary_denominators(objective, micro))(inputs.batch).sum(axis=0)
    totals = terms.Denominators(inputs.total, psum(counts, inputs.axis))

    def weighted(trained: FlatParams, micro: Batch) -> tuple[jax.Array, jax.Array]:
        params = with_leaves(inputs.params, {**inputs.flat, **trained})
        _, losses = terms.contributions(
            objective, params, micro, hyper, inputs.key, totals=totals, progress=inputs.progress
        )
        return jnp.dot(factors, losses), losses

    def add(carry, micro: Batch):
        gradient, losses = jax.grad(weighted, has_aux=True)(inputs.trained, micro)
        return jax.tree.map(jnp.add, carry, (losses, gradient)), None

    zero = jnp.zeros_like(factors), jax.tree.map(jnp.zeros_like, inputs.trained)
    (losses, gradient), _ = jax.lax.scan(add, zero, inputs.batch)
    losses, gradient = psum((losses, gradient), inputs.axis)
    return AuxiliaryStep(dict(zip(names, losses, strict=True)), jnp.dot(factors, losses), gradient)
