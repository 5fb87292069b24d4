"""λ·Ω in the step: the values Ω, the strengths λ at this progress, and λ·∇Ω of the penalties that act by gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.training import objective as terms
from mtl_jax.training import penalty_effect
from mtl_jax.training.gradients.base import StepInputs
from mtl_jax.training.objective import FlatParams, Penalty


class PenaltyStep(NamedTuple):
    """values {penalty: Ω}; strengths {penalty: λ}; gradient {path: leaf} of Σ λ·Ω over those that act by gradient;
    ratios {penalty: λ·‖∇Ω‖ / ‖∇L‖} of these.
    """

    values: dict[str, jax.Array]
    strengths: dict[str, jax.Array]
    gradient: dict[str, jax.Array]
    ratios: dict[str, jax.Array]


def penalty_gradient(inputs: StepInputs, data: FlatParams) -> PenaltyStep:
    """λ·∇Ω with respect to the trained leaves. Penalties with a proximal operator act in `update` instead.

    `data`: {path: leaf}, the gradient of the losses, for `penalty_ratio`.
    """
    strengths = terms.penalty_strengths(inputs.objective, inputs.hyper, inputs.progress)
    total, values, ratios = jax.tree.map(jnp.zeros_like, dict(inputs.trained)), {}, {}
    for name, penalty in inputs.objective.penalties.items():

        def value(trained: FlatParams, name: str = name, penalty: Penalty = penalty) -> jax.Array:
            return penalty.value({**inputs.flat, **trained}, inputs.anchor, inputs.hyper.by_layer[name])

        if penalty.mode == "proximal":
            values[name] = value(inputs.trained)
            continue
        factor = strengths[name]
        if penalty.mode == "either":
            factor = jnp.where(inputs.hyper.proximal[name], 0.0, factor)
        values[name], gradient = jax.value_and_grad(value)(inputs.trained)
        gradient = jax.tree.map(lambda leaf, factor=factor: factor.astype(leaf.dtype) * leaf, gradient)
        norms = (penalty_effect.tree_norm(leaves_of(penalty, inputs, tree)) for tree in (gradient, data))
        ratios[name] = penalty_effect.safe_ratio(*norms)
        total = jax.tree.map(jnp.add, total, gradient)
    return PenaltyStep(values, strengths, total, ratios)


def leaves_of(penalty: Penalty, inputs: StepInputs, tree: FlatParams) -> list[jax.Array]:
    """The leaves of a flat dict that a penalty reads and the optimizer moves."""
    return [tree[path] for path in penalty.stacks(inputs.flat) if path in inputs.trained]
